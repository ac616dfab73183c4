"""All that a model's scores may know, put together: the parts that its `knows` names.

Q  targets     C  candidates     D  dimension     X  columns of queries and candidates: D, and those of some parts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.data.batch import Lists
from ingest.data.manifest import Manifest
from ingest.features.feature import dated
from trainer.layers import FeatureVector
from trainer.models.registry import NeuralConfig
from trainer.scores.ages import AgeScores
from trainer.scores.attributes import AttributeVectors
from trainer.scores.history import HistoryPointer
from trainer.scores.intents import Acting, IntentScores, Part
from trainer.scores.moments import MomentPointer, Moments
from trainer.scores.request import RequestEncoding
from trainer.scores.transitions import Followers, TransitionPointer
from trainer.train_config import TrainConfig


@dataclass(frozen=True)
class Facts:
    """What is known of candidates, for the parts that need it."""

    attributes: Mapping[str, Tensor | Lists] = field(default_factory=dict)
    """The values of their lasting features, [C] or lists of them."""
    labels: Mapping[str, Tensor | Lists] = field(default_factory=dict)
    """Of those that are intents."""
    day_C: Tensor | None = None
    """The day that they are from."""


@dataclass(frozen=True)
class Further:
    """What is taken around the requests, as candidates of the targets' own: their items come behind all others."""

    moments: Moments | None = None
    followers: Followers | None = None
    place_C: Tensor | None = None
    """Where all candidates are among the different ones, which alone are looked up; None where there are no further."""

    @property
    def items(self) -> list[Tensor]:
        """Those of each part."""
        return [part.item_U for part in (self.moments, self.followers) if part is not None]


class Scores(nn.Module):
    """Each part is a module that is there or not."""

    def __init__(self, model: NeuralConfig, train: TrainConfig, manifest: Manifest) -> None:
        super().__init__()
        dimension, features = train.tables.dimension, manifest.features if model.reads_features else []
        self.temperature = model.temperature
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
            self.recent = MomentPointer(dimension, manifest.items, model.moments.items, model.moments.by is not None)
        self.transitions: TransitionPointer | None = None
        if "transitions" in model.knows:
            self.transitions = TransitionPointer(dimension, manifest.items, model.moments.transitions)
        self.ages: AgeScores | None = None
        feature = dated(manifest.features)
        if "age" in model.knows and feature is not None:
            self.ages = AgeScores(manifest, feature, dimension, "intents" in model.knows)
        self.intents: IntentScores | None = None
        if "intents" in model.knows:
            self.intents = IntentScores(manifest, bool(self.history or self.recent))

    @property
    def only_rows(self) -> bool:
        """Whether a candidate's columns are its row of the item table."""
        return self.temperature is None and self.attributes is None and self.ages is None and self.intents is None

    def vectors(self, rows_CD: Tensor, attributes: Mapping[str, Tensor]) -> Tensor:
        """The candidates' vectors from their rows and those of their features: [C, D]."""
        return rows_CD if self.attributes is None else rows_CD + self.attributes(attributes)

    def labels(self, values: Mapping[str, Tensor | Lists], count: int) -> Tensor | None:
        """The shares of labels that `count` candidates bear, from their values; None where no intent acts."""
        return None if self.intents is None else self.intents.labels(values, count)

    def acting(self, log_p_NL: Tensor | None, label_XL: Tensor | None, part: Part) -> Acting | None:
        """What the intents give a part with candidates of each query's own; None where they do not act."""
        if self.intents is None or log_p_NL is None or label_XL is None:
            return None
        return self.intents.acting(log_p_NL, label_XL, part)

    def columns(self, vectors_CD: Tensor, label_CL: Tensor | None) -> Tensor:
        """The candidates as they are multiplied with queries, [C, X]: of ages, only the day's column is added."""
        if self.temperature is not None:
            vectors_CD = F.normalize(vectors_CD, dim=1)
        return vectors_CD if label_CL is None else torch.cat([vectors_CD, label_CL.to(vectors_CD.dtype)], dim=1)

    def asked(self, query_QD: Tensor, time_Q: Tensor, log_p_QL: Tensor | None) -> Tensor:
        """The queries to match, [Q, X]; `time_Q`: of the requests; `log_p_QL`: of all intents' labels."""
        parts, log_p_Ql = [query_QD], None
        if self.temperature is not None:
            parts = [F.normalize(query_QD, dim=1) / self.temperature]
        if self.intents is not None:
            assert log_p_QL is not None
            parts.append(self.intents.asked(log_p_QL, Part.TABLE))
            log_p_Ql = self.intents.of(log_p_QL, self.ages.name) if self.ages is not None else None
        if self.ages is not None:
            parts.append(self.ages.asked(query_QD, time_Q, log_p_Ql))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
