"""Popularity: every item by how often the training data have it, for everybody alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluation.baselines.base import BaselineConfig, BaselineScorer
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.data.batch import Batch
    from trainer.recommender import Query


@register
class PopularityConfig(BaselineConfig):
    kind: Literal["popularity"] = "popularity"

    def scorer(self, data: Prepared) -> Popularity:
        return Popularity(data)


class Popularity(BaselineScorer):
    """The counts of this worker's items, v of them."""

    def __init__(self, data: Prepared) -> None:
        import torch

        counts_v = data.items.counts[data.slice.rows.numpy()].astype(np.float32)
        self.counts_v = torch.from_numpy(counts_v).to(data.worker.device)

    def query(self, batch: Batch) -> Query:
        return (batch.target_Q.new_zeros(len(batch.target_Q), 1),)

    def scores(self, query: Query) -> Tensor:
        return self.counts_v.repeat(len(query[0]), 1)
