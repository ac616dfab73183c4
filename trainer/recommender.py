"""A model and its tables together: what TorchRec shards and what a step calls.

T  tokens     Q  targets     C  candidates     D  dimension     M  intents
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.table_config import ITEM
from embeddings.tables import Lookup, Tables
from ingest.data.batch import Batch
from ingest.data.manifest import Manifest
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.registry import NeuralConfig
from trainer.scores.intents import Part
from trainer.scores.pointers import joined
from trainer.scores.scores import Facts, Further, Scores
from trainer.softmax import Pointed
from trainer.train_config import TrainConfig

NOTHING, NOBODY = Facts(), Further()
Query: TypeAlias = tuple[Tensor, ...]
"""What is needed to score the catalogue, a row a target in each tensor."""


@dataclass(frozen=True)
class Prediction:
    """The model's answer for the batch's targets."""

    query: Query
    candidates_CD: Tensor
    """Their columns, but for those of the moments' items."""
    intents: dict[str, Tensor]
    """Logits of each intent, [Q, labels]."""
    attention_QM: Tensor | None
    pointed: Pointed | None = None
    """What the scores know besides, for the loss."""
    adds_C: Tensor | None = None
    """Which of the query's columns beyond theirs each candidate's score gains."""


@dataclass(frozen=True)
class Asked:
    """A batch with all that can be known of it before any weight is read."""

    batch: Batch
    layout: Layout
    lookup: Lookup
    facts: Facts
    """Of the candidates, the last of which are the items of `further`."""
    further: Further


class Recommender(nn.Module):
    """Tables, network and scores; `forward` looks up the inputs and the candidates in one exchange.

    In training it gives what the loss needs, else what ranking does: then the query has the candidates of the
    history, too.
    """

    def __init__(self, network: nn.Module, scores: Scores, tables: Tables, numbers: list[str]) -> None:
        super().__init__()
        self.tables, self.network, self.scores, self.numbers = tables, network, scores, numbers

    def ask(
        self,
        batch: Batch,
        candidates_C: Tensor,
        facts: Facts = NOTHING,
        further: Further = NOBODY,
        training: bool = False,
    ) -> Asked:
        """What `forward` takes. All workers have to call it at the same time, and then `forward` in the same order."""
        layout = Layout(batch.lengths_B, batch.item_T.device)
        return Asked(batch, layout, self.tables.ask(batch, candidates_C, facts.attributes, training), facts, further)

    def forward(self, asked: Asked) -> Prediction:
        scores, batch, facts, further, layout = self.scores, asked.batch, asked.facts, asked.further, asked.layout
        found = self.tables(asked.lookup)
        vectors, candidates_CD = found.inputs, scores.vectors(found.candidates_CD, found.attributes)
        label_CL, day_C = scores.labels(facts.labels, len(candidates_CD)), facts.day_C
        columns = [batch.features[name] for name in self.numbers]
        numbers_Tn = (
            torch.stack([column for column in columns if isinstance(column, Tensor)], dim=1)
            if columns
            else candidates_CD.new_zeros(batch.tokens, 0)
        )
        at = batch.target_position_Q
        inputs = Inputs(vectors, numbers_Tn, batch.time_T, batch.position_T, layout, asked_Q=at)
        features_TX = scores.features(inputs) * scores.features.scale if scores.history else None
        if scores.request is not None:
            asked_TD = scores.request(inputs, batch.request_time_T, found.request)
            inputs = replace(inputs, request_time_T=batch.request_time_T, request_TD=asked_TD)
            if not getattr(self.network, "reads_request", False):
                inputs = replace(inputs, vectors=vectors | {ITEM: vectors[ITEM] + asked_TD})
        output = self.network(inputs)
        query_QD = output.query_TD.index_select(0, at).float()
        log_p_TL = None if scores.intents is None else scores.intents(output.intents or output.latent)
        log_p_QL = None if log_p_TL is None else log_p_TL.index_select(0, at)
        listed, pointed = not self.training, []
        if scores.history is not None:
            acting = scores.acting(log_p_TL, scores.labels(batch.features, batch.tokens), Part.HISTORY)
            pointed.append(scores.history(output.query_TD, features_TX, batch, inputs.layout, listed, acting))
        vectors_U, labels_U = list[Tensor](), list[Tensor | None]()
        if further.place_C is not None:
            sizes = [len(items) for items in further.items]
            place_C, *place_U = further.place_C.split([len(further.place_C) - sum(sizes), *sizes])
            vectors_U = [F.embedding(place, candidates_CD) for place in place_U]
            labels_U = [None if label_CL is None else label_CL.index_select(0, place) for place in place_U]
            candidates_CD = F.embedding(place_C, candidates_CD)
            label_CL = None if label_CL is None else label_CL.index_select(0, place_C)
            day_C = None if day_C is None else day_C.index_select(0, place_C)
        if scores.transitions is not None:
            assert further.followers is not None
            pointed.append(scores.transitions(query_QD, vectors_U[-1], further.followers, batch.target_Q, listed))
        if scores.recent is not None:
            assert further.moments is not None
            acting = scores.acting(log_p_QL, labels_U[0], Part.RECENT)
            pointed.append(scores.recent(query_QD, vectors_U[0], further.moments, batch.target_Q, listed, acting))
        query = [scores.asked(query_QD, batch.request_time_T.index_select(0, at), log_p_QL)]
        if listed and pointed:
            query += [torch.cat([candidates.item_QW for _, candidates in pointed], dim=1)]
            query += [torch.cat([candidates.logit_QW for _, candidates in pointed], dim=1)]
        return Prediction(
            tuple(query),
            scores.columns(candidates_CD, label_CL),
            {name: logits.index_select(0, at).float() for name, logits in output.intents.items()},
            None if output.attention_TM is None else output.attention_TM.index_select(0, at),
            joined([sums for sums, _ in pointed]),
            day_C,
        )


def build(model: NeuralConfig, train: TrainConfig, manifest: Manifest) -> Recommender:
    """The recommender that `model` describes: dense weights drawn from the seed, tables on the meta device."""
    dimension, length, manifest = train.tables.dimension, train.reader.max_length, model.view(manifest)
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
