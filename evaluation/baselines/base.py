"""What a baseline's config and its scorer have in common. Imports no torch.

A new baseline is one file: a subclass of `BaselineConfig` under `trainer.models.registry.register`, whose `scorer`
counts what it needs from the prepared data and gives an `evaluation.ranking.Scorer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.models.registry import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from embeddings.workers import Worker
    from evaluation.ranking import Scorer
    from ingest.data.batch import Batch
    from ingest.data.items import ItemTable
    from trainer.recommender import Prediction


class BaselineConfig(ModelConfig):
    """A model that is counted when it is evaluated, and not trained."""

    def scorer(self, url: str, items: ItemTable, worker: Worker) -> Scorer:
        """Scores of this worker's slice of the items, from the prepared data set in the folder `url`."""
        raise NotImplementedError


class BaselineScorer:
    """A scorer that keeps the items' order and predicts no intents; a subclass gives `queries` and `scores`."""

    def queries(self, batch: Batch) -> Tensor:
        """What is needed to score, one row a target: [Q, ...]."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> Prediction:
        from trainer.recommender import Prediction

        queries = self.queries(batch)
        return Prediction(queries, queries[:0], {}, None)

    def item_to_row(self, item_N: Tensor) -> Tensor:
        return item_N

    def row_to_item(self, row_N: Tensor) -> Tensor:
        return row_N
