"""Popularity: every item by how often the training data have it, for everybody alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluation.baselines.base import BaselineConfig, BaselineScorer
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from embeddings.workers import Worker
    from ingest.data.batch import Batch
    from ingest.data.items import ItemTable


@register
class PopularityConfig(BaselineConfig):
    kind: Literal["popularity"] = "popularity"

    def scorer(self, url: str, items: ItemTable, worker: Worker) -> Popularity:
        return Popularity(items, worker)


class Popularity(BaselineScorer):
    """The counts of this worker's items, v of them."""

    def __init__(self, items: ItemTable, worker: Worker) -> None:
        import torch

        from embeddings.workers import own_rows

        begin, end = own_rows(items.size, worker.rank, worker.workers)
        self.counts_v = torch.from_numpy(items.counts[begin:end].astype(np.float32)).to(worker.device)

    def queries(self, batch: Batch) -> Tensor:
        return batch.target_Q.new_zeros(len(batch.target_Q), 1)

    def scores(self, queries: Tensor) -> Tensor:
        return self.counts_v.repeat(len(queries), 1)
