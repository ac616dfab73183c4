"""What a baseline's config and its scorer have in common. Imports no torch.

A new baseline is one file: a subclass of `BaselineConfig` under `trainer.models.registry.register`, whose `scorer`
counts what it needs from the prepared data and gives an `evaluation.ranking.Scorer`. A setting of type `OneOrMore` may
have several values in the config: then the best is chosen on the validation split (evaluation/choice.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, TypeAlias, TypeVar

from pydantic import Field

from ingest.data.reader_config import ReaderConfig
from trainer.models.registry import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from embeddings.workers import Worker
    from evaluation.baselines.incidence import Incidence
    from evaluation.ranking import Scorer
    from evaluation.slices import CatalogueSlice
    from ingest.data.batch import Batch
    from ingest.data.items import ItemTable
    from ingest.data.manifest import Manifest, SplitName
    from ingest.data.reader import Reader
    from ingest.data.shards import Skipped, StoredRows
    from ingest.features.feature import Feature
    from trainer.recommender import Prediction, Query

T = TypeVar("T")
OneOrMore: TypeAlias = T | Annotated[list[T], Field(min_length=1)]
"""A setting, or those of which the best is chosen on the validation split."""
Positive: TypeAlias = Annotated[int, Field(ge=1)]


def check_feature(chosen: OneOrMore[str | None], allowed: Iterable[Feature], takes: str) -> None:
    """`ValueError` where a setting `by` names a feature that is not `allowed`."""
    names = [feature.name for feature in allowed]
    for name in chosen if isinstance(chosen, list) else [chosen]:
        if name is not None and name not in names:
            raise ValueError(f"by: takes {takes}, got {name!r}; allowed: {', '.join(names) or 'none'}")


def single(value: T | list[T]) -> T:
    """A setting of a config that is one of another's `candidates`."""
    assert not isinstance(value, list)
    return value


@dataclass(frozen=True)
class Prepared:
    """A prepared data set as a baseline sees it."""

    url: str
    """Its folder."""
    manifest: Manifest
    items: ItemTable
    """With counts."""
    worker: Worker
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    skipped: list[Skipped] = field(default_factory=list)
    """Damaged row groups that reading has set aside."""
    log: str | None = None
    """Folder of the log that it was prepared from, where the run has made it by `simulate`."""

    @cached_property
    def slice(self) -> CatalogueSlice:
        """This worker's items: the columns of its scores."""
        from evaluation.slices import CatalogueSlice

        return CatalogueSlice(self.manifest.items, self.manifest.catalogue, self.worker)

    @cached_property
    def popularity_v(self) -> Tensor:
        """This worker's items by how often the training data have them, from 0 to below 1: float64 [v]."""
        import torch

        share_v = self.items.counts[self.slice.rows.numpy()] / (self.items.counts.sum() + 1.0)
        return torch.from_numpy(share_v).to(self.worker.device)

    @cached_property
    def incidence(self) -> Incidence:
        """Which training rows have which items; counted once for all settings that are tried."""
        from evaluation.baselines.incidence import Incidence

        return Incidence.of(self.training_rows(), self.manifest.catalogue)

    def training_batches(self, features: bool) -> Iterator[Batch]:
        """All training targets once, those of every worker, in the order of an epoch; on the CPU."""
        with self._reading("train", features) as reader:
            yield from (batch for batch, _ in reader.epoch(0))

    def training_rows(self) -> Iterator[StoredRows]:
        """All training rows, those of every worker, a shuffle block at a time. Who has one event only has no row."""
        yield from self.rows("train", features=False)

    def rows(self, split: SplitName, features: bool) -> Iterator[StoredRows]:
        """All rows of a split, likewise."""
        with self._reading(split, features) as reader:
            yield from reader.rows()

    @contextmanager
    def _reading(self, split: SplitName, features: bool) -> Iterator[Reader]:
        from ingest.data.reader import Reader

        reader = Reader(self.url, self.manifest, self.items, split, self.reader, features=features)
        yield reader
        self.skipped.extend(reader.skipped)


class BaselineConfig(ModelConfig):
    """A model that is counted when it is evaluated, and not trained."""

    oracle: ClassVar[bool] = False
    """Whether it knows what is hidden from all others, so that it is a bound for them and no competitor."""

    @property
    def inputs(self) -> str:
        """What it sees, in the report's words."""
        return "items"

    @property
    def reads_features(self) -> bool:
        """Whether it sees more of the batches than items, places and times."""
        return False

    def scorer(self, data: Prepared) -> Scorer:
        """Scores of this worker's slice of the items; every setting has one value."""
        raise NotImplementedError

    @property
    def several(self) -> dict[str, list[object]]:
        """The settings of which one value is to be chosen."""
        return {name: value for name, value in self if isinstance(value, list)}

    def candidates(self) -> list[Self]:
        """Every combination of the settings' values, as a config of its own."""
        several = self.several
        combinations = itertools.product(*several.values())
        return [self.model_copy(update=dict(zip(several, values, strict=True))) for values in combinations]


class BaselineScorer:
    """A scorer that keeps the items' order and predicts no intents; a subclass gives `query` and `scores`."""

    def query(self, batch: Batch) -> Query:
        """What is needed to score, one row a target: tensors [Q, ...]."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> Prediction:
        from trainer.recommender import Prediction

        query = self.query(batch)
        return Prediction(query, query[0][:0], {}, None)

    def item_to_row(self, item_N: Tensor) -> Tensor:
        return item_N

    def row_to_item(self, row_N: Tensor) -> Tensor:
        return row_N


class ListedScorer(BaselineScorer):
    """A scorer of lists: a query is each target's items, best first, padded, [Q, length]; all others by popularity."""

    def __init__(self, data: Prepared, length: int) -> None:
        self.slice, self.popularity_v, self.length = data.slice, data.popularity_v, length

    def scores(self, query: Query) -> Tensor:
        import torch

        (item_QL,) = query
        scores_Qv = self.popularity_v.repeat(len(item_QL), 1)
        query_N, place_N, column_N = self.slice.entries(item_QL)
        scores_Qv[query_N, column_N] = (self.length - place_N).to(torch.float64)
        return scores_Qv
