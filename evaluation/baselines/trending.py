"""What is popular lately: every item by its events in the last span of time, the more popular ever first among equals.

Frozen, the span ends with the training data: what a list that is made once can know. Live, it ends with the request,
as in a portal that counts its clicks all the time (recently popular; Ludewig and Jannach 2018, arXiv 1803.09587, have
it among their baselines); events of all splits count, but only those of complete buckets of five minutes before the
target's own, so that neither the target nor what came after it is known.

    N  entries, of the activity of this worker's items     D  different buckets of a batch's targets
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from evaluation.baselines.base import BaselineConfig, BaselineScorer, OneOrMore, single
from ingest.data.activity import BUCKET, of_buckets, read_activity
from ingest.durations import parse_duration
from ingest.features.feature import FIRST_VALUE
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from ingest.data.schema import DataConfig
    from trainer.recommender import Query
    from trainer.train_config import TrainConfig


@register
class TrendingConfig(BaselineConfig):
    kind: Literal["trending"] = "trending"
    span: OneOrMore[Annotated[str, AfterValidator(of_buckets)]] = "1d"
    live: OneOrMore[bool] = False
    """Whether the span ends with the request, or with the training data."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        if data.time_unit == "position":
            raise ValueError("kind: trending needs real times, not time_unit position")

    def scorer(self, data: Prepared) -> Trending:
        return Trending(data, parse_duration(single(self.span)) // BUCKET, single(self.live))


class Trending(BaselineScorer):
    """A query is the first bucket after the `buckets` that count: [Q]."""

    def __init__(self, data: Prepared, buckets: int, live: bool) -> None:
        import torch

        self.buckets, self.popularity_v = buckets, data.popularity_v
        self.end = None if live else data.manifest.last_time // BUCKET + 1
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for item, bucket, training, total in read_activity(data.url):
            column, count = data.slice.columns(torch.tensor(item)).numpy(), total if live else training
            kept = (item >= FIRST_VALUE) & (column >= 0) & (count > 0)
            if self.end is not None:
                kept &= (bucket >= self.end - buckets) & (bucket < self.end)
            parts.append(np.stack([column, bucket, count])[:, kept])
        entries = np.concatenate(parts, axis=1)
        self.column_N, self.bucket_N, self.count_N = entries[:, np.argsort(entries[1], kind="stable")]

    def query(self, batch: Batch) -> Query:
        import torch

        if self.end is not None:
            return (torch.full_like(batch.target_Q, self.end),)
        assert batch.target_time_Q is not None
        return (batch.target_time_Q // BUCKET,)

    def scores(self, query: Query) -> Tensor:
        """Only the different buckets are counted, which takes no more memory than the scores themselves."""
        import torch

        bucket_D, row_Q = np.unique(query[0].cpu().numpy(), return_inverse=True)
        device = self.popularity_v.device
        scores_Dv = torch.from_numpy(self._counts(bucket_D)).to(device) + self.popularity_v
        return scores_Dv[torch.from_numpy(row_Q).to(device)]

    def _counts(self, bucket_D: Integers) -> np.ndarray:
        """The events of each item in the buckets before each of `bucket_D`, which ascend: float64 [D, v].

        From one to the next only what comes in and what goes out is counted.
        """
        counts_Dv = np.empty((len(bucket_D), len(self.popularity_v)))
        counts_v = np.zeros(len(self.popularity_v))
        begin = end = 0
        entries_D = zip(*np.searchsorted(self.bucket_N, [bucket_D - self.buckets, bucket_D]).tolist(), strict=True)
        for row, (first, last) in enumerate(entries_D):
            if first >= end:  # nothing of the window before
                counts_v[:] = 0
                begin = end = first
            np.add.at(counts_v, self.column_N[end:last], self.count_N[end:last])
            np.subtract.at(counts_v, self.column_N[begin:first], self.count_N[begin:first])
            begin, end = first, last
            counts_Dv[row] = counts_v
        return counts_Dv
