"""A model and its tables together: what TorchRec shards and what a step calls.

T  tokens     Q  targets     C  candidates     D  dimension     M  intents
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from embeddings.tables import Tables
from ingest.data.batch import Batch
from ingest.data.manifest import Manifest
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.registry import NeuralConfig
from trainer.train_config import TrainConfig

Query: TypeAlias = tuple[Tensor, ...]
"""What is needed to score the catalogue, a row a target in each tensor."""


@dataclass(frozen=True)
class Prediction:
    """The model's answer for the batch's targets."""

    query: Query
    candidates_CD: Tensor
    intents: dict[str, Tensor]
    """Logits of each intent, [Q, labels]."""
    attention_QM: Tensor | None


class Recommender(nn.Module):
    """Tables and network; `forward` looks up the inputs and the candidates in one exchange."""

    def __init__(self, network: nn.Module, tables: Tables, numbers: list[str]) -> None:
        super().__init__()
        self.tables, self.network, self.numbers = tables, network, numbers

    def forward(self, batch: Batch, candidates_C: Tensor) -> Prediction:
        vectors, candidates_CD = self.tables(batch, candidates_C)
        columns = [batch.features[name] for name in self.numbers]
        numbers_Tn = (
            torch.stack([column for column in columns if isinstance(column, Tensor)], dim=1)
            if columns
            else candidates_CD.new_zeros(batch.tokens, 0)
        )
        inputs = Inputs(
            vectors, numbers_Tn, batch.time_T, batch.position_T, Layout(batch.lengths_B, batch.item_T.device)
        )
        output = self.network(inputs)
        at = batch.target_position_Q
        return Prediction(
            (output.query_TD.index_select(0, at).float(),),
            candidates_CD,
            {name: logits.index_select(0, at).float() for name, logits in output.intents.items()},
            None if output.attention_TM is None else output.attention_TM.index_select(0, at),
        )


def build(model: NeuralConfig, train: TrainConfig, manifest: Manifest) -> Recommender:
    """The recommender that `model` describes: dense weights drawn from the seed, tables on the meta device."""
    dimension, length = train.tables.dimension, train.reader.max_length
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        network = model.network(manifest, dimension, length)
    numbers = [feature.name for feature in manifest.features if feature.is_number] if model.reads_features else []
    return Recommender(network, Tables(manifest, train.tables, model.reads_features, train.seed), numbers)
