"""A model and its tables together: what TorchRec shards and what a step calls.

T  tokens     Q  targets     C  candidates     D  dimension     M  intents
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from embeddings.table_config import ITEM
from embeddings.tables import Tables
from ingest.data.batch import Batch, Lists
from ingest.data.manifest import Manifest
from trainer.attention import Layout
from trainer.layers import FeatureVector, Inputs
from trainer.models.registry import NeuralConfig
from trainer.scores.attributes import AttributeVectors
from trainer.scores.history import HistoryPointer
from trainer.scores.moments import MomentPointer, Moments
from trainer.scores.pointers import joined
from trainer.scores.request import RequestEncoding
from trainer.softmax import Pointed
from trainer.train_config import TrainConfig

NOTHING: Mapping[str, Tensor | Lists] = {}
Query: TypeAlias = tuple[Tensor, ...]
"""What is needed to score the catalogue, a row a target in each tensor."""


@dataclass(frozen=True)
class Prediction:
    """The model's answer for the batch's targets."""

    query: Query
    candidates_CD: Tensor
    """Their vectors, but for those of the moments' items."""
    intents: dict[str, Tensor]
    """Logits of each intent, [Q, labels]."""
    attention_QM: Tensor | None
    pointed: Pointed | None = None
    """What the scores know besides, for the loss."""


class Scores(nn.Module):
    """The parts of a score that a model's `knows` names, each a module that is there or not."""

    def __init__(self, model: NeuralConfig, train: TrainConfig, manifest: Manifest) -> None:
        super().__init__()
        dimension, features = train.tables.dimension, manifest.features if model.reads_features else []
        request = "request" in model.knows
        asked = [feature.name for feature in features if feature.at_request]
        self.features = FeatureVector(features, dimension)
        self.request = RequestEncoding(manifest, asked, dimension) if request else None
        names = [feature.name for feature in manifest.attributes]
        self.attributes = AttributeVectors(names, dimension) if "attributes" in model.knows else None
        self.history: HistoryPointer | None = None
        if "history" in model.knows:
            length, items = train.reader.max_length, manifest.items
            self.history = HistoryPointer(self.features.width, dimension, length, items, request)
        self.recent: MomentPointer | None = None
        if "recent" in model.knows:
            self.recent = MomentPointer(dimension, manifest.items, model.moments.items)


class Recommender(nn.Module):
    """Tables, network and scores; `forward` looks up the inputs and the candidates in one exchange.

    In training it gives what the loss needs, else what ranking does: then the query has the candidates of the
    history, too.
    """

    def __init__(self, network: nn.Module, scores: Scores, tables: Tables, numbers: list[str]) -> None:
        super().__init__()
        self.tables, self.network, self.scores, self.numbers = tables, network, scores, numbers

    def forward(
        self,
        batch: Batch,
        candidates_C: Tensor,
        attributes: Mapping[str, Tensor | Lists] = NOTHING,
        moments: Moments | None = None,
    ) -> Prediction:
        """`attributes`: of the candidates; `moments`: of the targets, and their items are the last candidates."""
        found = self.tables(batch, candidates_C, attributes)
        vectors, candidates_CD = found.inputs, found.candidates_CD
        if self.scores.attributes is not None:
            candidates_CD = candidates_CD + self.scores.attributes(found.attributes)
        columns = [batch.features[name] for name in self.numbers]
        numbers_Tn = (
            torch.stack([column for column in columns if isinstance(column, Tensor)], dim=1)
            if columns
            else candidates_CD.new_zeros(batch.tokens, 0)
        )
        inputs = Inputs(
            vectors, numbers_Tn, batch.time_T, batch.position_T, Layout(batch.lengths_B, batch.item_T.device)
        )
        features_TX = self.scores.features(inputs) * self.scores.features.scale if self.scores.history else None
        if self.scores.request is not None:
            asked_TD = self.scores.request(inputs, batch.request_time_T, found.request)
            inputs = replace(inputs, vectors=vectors | {ITEM: vectors[ITEM] + asked_TD})
        output = self.network(inputs)
        at = batch.target_position_Q
        query = [output.query_TD.index_select(0, at).float()]
        listed, pointed = not self.training, []
        if self.scores.history is not None:
            pointed.append(self.scores.history(output.query_TD, features_TX, batch, inputs.layout, listed))
        if self.scores.recent is not None:
            assert moments is not None
            own = len(candidates_CD) - len(moments.item_U)
            candidates_CD, recent_UD = candidates_CD[:own], candidates_CD[own:]
            pointed.append(self.scores.recent(query[0], recent_UD, moments, batch.target_Q, listed))
        if listed and pointed:
            query += [torch.cat([candidates.item_QW for _, candidates in pointed], dim=1)]
            query += [torch.cat([candidates.logit_QW for _, candidates in pointed], dim=1)]
        return Prediction(
            tuple(query),
            candidates_CD,
            {name: logits.index_select(0, at).float() for name, logits in output.intents.items()},
            None if output.attention_TM is None else output.attention_TM.index_select(0, at),
            joined([sums for sums, _ in pointed]),
        )


def build(model: NeuralConfig, train: TrainConfig, manifest: Manifest) -> Recommender:
    """The recommender that `model` describes: dense weights drawn from the seed, tables on the meta device."""
    dimension, length = train.tables.dimension, train.reader.max_length
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        network = model.network(manifest, dimension, length)
        scores = Scores(model, train, manifest)
    features = manifest.features if model.reads_features else []
    numbers = [feature.name for feature in features if feature.is_number]
    inputs = [feature.name for feature in features if not feature.is_number]
    asked = scores.request.features if scores.request else []
    attributes = scores.attributes.names if scores.attributes else []
    tables = Tables(manifest, train.tables, inputs, train.seed, asked, attributes)
    return Recommender(network, scores, tables, numbers)
