"""What a baseline's config and its scorer have in common. Imports no torch.

A new baseline is one file: a subclass of `BaselineConfig` under `trainer.models.registry.register`, whose `scorer`
counts what it needs from the prepared data and gives an `evaluation.ranking.Scorer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.models.registry import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from embeddings.workers import Worker
    from evaluation.ranking import Scorer
    from evaluation.slices import CatalogueSlice
    from ingest.data.batch import Batch
    from ingest.data.items import ItemTable
    from ingest.data.manifest import Manifest
    from trainer.recommender import Prediction, Query


@dataclass(frozen=True)
class Prepared:
    """A prepared data set as a baseline sees it."""

    url: str
    """Its folder."""
    manifest: Manifest
    items: ItemTable
    """With counts."""
    worker: Worker

    @cached_property
    def slice(self) -> CatalogueSlice:
        """This worker's items: the columns of its scores."""
        from evaluation.slices import CatalogueSlice

        return CatalogueSlice(self.manifest.items, self.manifest.catalogue, self.worker)


class BaselineConfig(ModelConfig):
    """A model that is counted when it is evaluated, and not trained."""

    def scorer(self, data: Prepared) -> Scorer:
        """Scores of this worker's slice of the items."""
        raise NotImplementedError


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
