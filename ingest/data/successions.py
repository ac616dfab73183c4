"""Which item followed which, and when: each time that a user took an item after another one, as prepare has found it.

    N  successions     V  the catalogue     Q  requests     R  the newest successions of a request's item

Only a log with times has them. Memory is that of the pairs, 12 bytes each and 8 for each item: it grows with the log's
events and not with pairs of items, nor with time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers, offsets_of
from ingest.data.pairs import read_pairs
from ingest.features.feature import PADDING


def read_successions(url: str) -> Iterator[tuple[Integers, ...]]:
    """The item before, the time, the item after and whether it is of training, part by part: arrays [N] of int64.

    Ascending by the item before and the time over all parts. `url`: the folder of the prepared data set. Raises
    `InputError` where they are not there.
    """
    return read_pairs(url, "successions", ["before", "time", "after", "training"])


@dataclass(frozen=True)
class Successions:
    begin_V: Integers
    """Where each item's own begin, and one more."""
    time_N: Integers
    """Of the item after, in milliseconds since 1970; ascending for each item before."""
    after_N: NDArray[np.int32]

    @classmethod
    def load(cls, url: str, catalogue: int, total: bool) -> Successions:
        """Those of the prepared data set `url` with `catalogue` items. `total`: of all splits, else of the training
        data. Raises `InputError` where prepare has found none."""
        count_V, times, afters = np.zeros(catalogue, np.int64), [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for before, time, after, training in read_successions(url):
            kept = slice(None) if total else np.flatnonzero(training)
            count_V += np.bincount(before[kept], minlength=catalogue)
            times.append(time[kept])
            afters.append(after[kept].astype(np.int32))
        return cls(offsets_of(count_V), np.concatenate(times), np.concatenate(afters))

    def newest(self, item_Q: Integers, until_Q: Integers, size: int) -> tuple[Integers, Integers]:
        """What came after `item_Q` before the times `until_Q`: the items and when, the newest `size` of each request.

        Newest first, padded with item `PADDING` at time 0: two [Q, R], R as long as the longest of them.
        """
        begin_Q, end_Q = self.begin_V[item_Q], self._end(item_Q, until_Q)
        longest = min(size, int((end_Q - begin_Q).max(initial=0)))
        place_QR = end_Q[:, None] - 1 - np.arange(longest)
        there_QR = place_QR >= begin_Q[:, None]
        place_QR = np.where(there_QR, place_QR, 0)
        return np.where(there_QR, self.after_N[place_QR], PADDING).astype(np.int64), self.time_N[place_QR] * there_QR

    def _end(self, item_Q: Integers, until_Q: Integers) -> Integers:
        """The first place of each item's own that is not before the time: a binary search in all of them at once."""
        low_Q, high_Q = self.begin_V[item_Q].copy(), self.begin_V[item_Q + 1].copy()
        while (low_Q < high_Q).any():
            open_Q = low_Q < high_Q
            middle_Q = (low_Q + high_Q) // 2
            before_Q = open_Q & (self.time_N[np.where(open_Q, middle_Q, 0)] < until_Q)
            low_Q = np.where(before_Q, middle_Q + 1, low_Q)
            high_Q = np.where(open_Q & ~before_Q, middle_Q, high_Q)
        return low_Q
