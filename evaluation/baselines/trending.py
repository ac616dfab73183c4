"""What is popular lately: every item by its events in the last span of time, the more popular ever first among equals.

Frozen, the span ends where the split that is evaluated begins, or, if splits are no points in time, with the training
data: what a list that is made once can know. Live, it ends with the request, as in a portal that counts its clicks all
the time (recently popular; Ludewig and Jannach 2018, arXiv 1803.09587, have it among their baselines); events of all
splits count, but only those of complete buckets of five minutes before the target's own, so that neither the target nor
what came after it is known. With `by`, a feature that is known at the request, only the events with the request's value
count: what is popular at this place in the app, on this device.

    N  entries, of the activity of this worker's items     D  different buckets (and values) of a batch's targets
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from evaluation.baselines.base import BaselineConfig, BaselineScorer, OneOrMore, check_feature, single
from ingest.arrays.jagged import offsets_of
from ingest.data.activity import BUCKET, of_buckets, read_activity, read_activity_by
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


class LatelyConfig(BaselineConfig):
    """Of a baseline that counts what is taken in a span of time."""

    span: OneOrMore[Annotated[str, AfterValidator(of_buckets)]] = "1d"
    """How long ago a time that an item was taken still counts."""
    live: OneOrMore[bool] = False
    """Whether the span ends with the request, or before all requests."""

    by: OneOrMore[str | None] = None
    """An event feature that is `at_request`."""

    @property
    def reads_features(self) -> bool:
        return self.by is not None

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        asked = (feature for feature in data.features if feature.at_request)
        check_feature(self.by, asked, "a feature with `at_request: true`")
        if data.time_unit == "position":
            raise ValueError(f"kind: {self.kind} needs real times, not time_unit position")


@register
class TrendingConfig(LatelyConfig):
    kind: Literal["trending"] = "trending"

    def scorer(self, data: Prepared) -> Trending:
        return Trending(data, parse_duration(single(self.span)) // BUCKET, single(self.live), single(self.by))


class Trending(BaselineScorer):
    """A query is the first bucket after the `buckets` that count, and the value of `by`, or 0: [Q] each."""

    def __init__(self, data: Prepared, buckets: int, live: bool, by: str | None = None) -> None:
        import torch

        self.buckets, self.by, self.popularity_v = buckets, by, data.popularity_v
        self.manifest, self.live = data.manifest, live
        self.total = live or bool(data.manifest.begins)
        """Whether the events of all splits count, as far as a request knows them, or those of training alone."""
        parts = [np.zeros((4, 0), dtype=np.int64)]
        for item, bucket, count, value in _events(data, self.total, by):
            column = data.slice.columns(torch.tensor(item)).numpy()
            kept = (item >= FIRST_VALUE) & (column >= 0) & (count > 0)
            parts.append(np.stack([column, bucket, count, value])[:, kept])
        entries = np.concatenate(parts, axis=1)
        self.entries = entries[:, np.lexsort((entries[1], entries[3]))]
        """Columns, buckets, counts and values, by value and time."""

    def query(self, batch: Batch) -> Query:
        import torch

        value_Q = torch.zeros_like(batch.target_Q)
        if self.by is not None:
            value_Q = batch.request[self.by][batch.target_position_Q]
        until_Q = self.until(batch)
        if not self.total:  # the training data's last bucket is complete
            until_Q = until_Q + BUCKET - 1
        return until_Q // BUCKET, value_Q

    def until(self, batch: Batch) -> Tensor:
        """From when on a request does not know what is taken, in milliseconds: [Q]."""
        import torch

        time_Q = batch.request_time_T[batch.target_position_Q]
        if self.live:
            return time_Q
        until_Q = self.manifest.frozen_until(time_Q.cpu().numpy())
        if until_Q is None:
            return torch.full_like(time_Q, self.manifest.last_time + 1)
        return torch.from_numpy(until_Q).to(time_Q.device)

    def scores(self, query: Query) -> Tensor:
        """Only what differs is counted, which takes no more memory than the scores themselves."""
        import torch

        different, row_Q = np.unique(
            np.stack([part.cpu().numpy() for part in (query[1], query[0])]), axis=1, return_inverse=True
        )
        values, first_D = np.unique(different[0], return_index=True)
        counts = [np.zeros((0, len(self.popularity_v)))]
        for value, bucket_D in zip(values, np.split(different[1], first_D[1:]), strict=True):
            begin, end = np.searchsorted(self.entries[3], [value, value + 1])
            counts.append(self._counts(bucket_D, *self.entries[:3, begin:end]))
        device = self.popularity_v.device
        scores_Dv = torch.from_numpy(np.concatenate(counts)).to(device) + self.popularity_v
        return scores_Dv[torch.from_numpy(row_Q.reshape(-1)).to(device)]

    def totals(self, query: Query) -> Tensor:
        """How many events of this worker's items lie in each query's span: [Q]."""
        import torch

        bucket_Q, value_Q = (part.cpu().numpy() for part in query)
        key_N, end_Q = self.entries[3] * 2**32 + self.entries[1], value_Q * 2**32 + bucket_Q
        begin_Q, end_Q = np.searchsorted(key_N, [end_Q - self.buckets, end_Q])
        before_N = offsets_of(self.entries[2])
        return torch.from_numpy(before_N[end_Q] - before_N[begin_Q]).to(query[0].device)

    def _counts(self, bucket_D: Integers, column_N: Integers, bucket_N: Integers, count_N: Integers) -> np.ndarray:
        """The events of each item in the buckets before each of `bucket_D`, which ascend: float64 [D, v].

        From one to the next only what comes in and what goes out is counted.
        """
        counts_Dv = np.empty((len(bucket_D), len(self.popularity_v)))
        counts_v = np.zeros(len(self.popularity_v))
        begin = end = 0
        entries_D = zip(*np.searchsorted(bucket_N, [bucket_D - self.buckets, bucket_D]).tolist(), strict=True)
        for row, (first, last) in enumerate(entries_D):
            if first >= end:  # nothing of the window before
                counts_v[:] = 0
                begin = end = first
            np.add.at(counts_v, column_N[end:last], count_N[end:last])
            np.subtract.at(counts_v, column_N[begin:first], count_N[begin:first])
            begin, end = first, last
            counts_Dv[row] = counts_v
        return counts_Dv


def _events(data: Prepared, total: bool, by: str | None) -> Iterator[tuple[Integers, ...]]:
    """Items, buckets, how many events, and the value of the feature `by`, or 0, part by part."""
    if by is None:
        for item, bucket, training, every in read_activity(data.url):
            yield item, bucket, every if total else training, np.zeros_like(item)
    else:
        for item, bucket, value, training, every in read_activity_by(data.url, by):
            yield item, bucket, every if total else training, value
