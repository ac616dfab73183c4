"""What a request may know of the items at its moment: which are taken lately, how often, and which are new.

    G  moments, `step` apart     M  items of each     V  the catalogue     F  features of an item at a moment

From the activity that prepare has counted: of each moment the first M items of several lists (most taken of the last
spans of time, newest), taken in turn. Only what lies before a moment counts, so neither a target nor what came after it
is known. Memory is [G, M], and [V] for the counts while they are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers
from ingest.data.activity import BUCKET, read_activity
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.durations import parse_duration
from ingest.features.elapsed import MISSING_TIME
from ingest.features.feature import FIRST_VALUE, PADDING, dated

NEVER = np.iinfo(np.int64).max

SPANS = tuple(parse_duration(span) // BUCKET for span in ("15m", "1h", "6h", "1d", "7d"))
"""In buckets: the spans of the counts. One more count is of all time before the moment."""
FEATURES = len(SPANS) + 2


@dataclass(frozen=True)
class Snapshots:
    """The items of each moment from `first` on, padded."""

    first: int
    """The first moment, in steps since 1970."""
    item_GM: Integers
    feature_GMF: NDArray[np.float32]
    """log(1 + events) of each of `SPANS` and of all time; log(1 + hours) since the item is there. Zeros for padding."""


def take_snapshots(url: str, manifest: Manifest, items: ItemTable, step: int, size: int, total: bool) -> Snapshots:
    """The snapshots of the prepared data set `url`, every `step` milliseconds, of `size` items each.

    An item is there from the date on that the first feature of kind `elapsed` has for it, else from its first event.

    `total`: of the events of all splits, else of the training data's. The last moment is the one after the last of
    these events. Raises `InputError` where prepare has counted no activity.
    """
    parts = [np.stack([item, bucket, every if total else training])
             for item, bucket, training, every in read_activity(url)]  # fmt: skip
    item_N, bucket_N, count_N = np.concatenate([np.zeros((3, 0), np.int64), *parts], axis=1)
    kept = (item_N >= FIRST_VALUE) & (count_N > 0)
    order = np.argsort(bucket_N[kept], kind="stable")
    item_N, bucket_N, count_N = (values[kept][order] for values in (item_N, bucket_N, count_N))
    buckets, first = step // BUCKET, manifest.first_time // step
    last = int(bucket_N[-1]) // buckets + 1 if len(bucket_N) else first
    since_V = _since(manifest, items)
    first_item, place = np.unique(item_N, return_index=True)
    first_time = bucket_N[place] * BUCKET
    since_V[first_item] = np.where(since_V[first_item] == NEVER, first_time, since_V[first_item])
    return _Sweep(item_N, bucket_N, count_N, since_V, size).snapshots(first, last + 1, buckets)


def _since(manifest: Manifest, items: ItemTable) -> Integers:
    """The date of each item, `NEVER` where it has none: int64 [V], in milliseconds."""
    since_V = np.full(manifest.catalogue, NEVER)
    feature = dated(manifest.features)
    if feature is not None:
        date_V = items.columns[feature.name]
        assert isinstance(date_V, np.ndarray)
        np.copyto(since_V, date_V, where=date_V != MISSING_TIME)
    since_V[:FIRST_VALUE] = NEVER
    return since_V


class _Sweep:
    """Goes from one moment to the next; only what comes into a span and what leaves it is counted."""

    def __init__(self, item_N: Integers, bucket_N: Integers, count_N: Integers, since_V: Integers, size: int) -> None:
        self.item_N, self.bucket_N, self.count_N, self.size = item_N, bucket_N, count_N, size
        self.counts_SV = np.zeros((len(SPANS) + 1, len(since_V)), dtype=np.float32)
        self.begin_S = np.zeros(len(SPANS), dtype=np.int64)
        self.end = 0
        self.since_V = since_V
        self.newest = np.argsort(since_V, kind="stable")
        self.newest_since = since_V[self.newest]
        self.rank_V = np.full(len(since_V), size, dtype=np.int64)

    def snapshots(self, first: int, until: int, buckets: int) -> Snapshots:
        moments = max(until - first, 1)
        item_GM = np.full((moments, self.size), PADDING, dtype=np.int64)
        feature_GMF = np.zeros((moments, self.size, FEATURES), dtype=np.float32)
        for g in range(moments):
            now = (first + g) * buckets
            self._advance(now)
            item_M = self._chosen(now)
            item_GM[g, : len(item_M)] = item_M
            found = feature_GMF[g, : len(item_M)]
            found[:, : len(SPANS) + 1] = np.log1p(self.counts_SV[:, item_M]).T
            age_M = np.maximum(now * BUCKET - self.since_V[item_M], 0)  # an item may be taken before its date
            found[:, -1] = np.log1p(age_M / parse_duration("1h"))
        return Snapshots(first, item_GM, feature_GMF)

    def _advance(self, now: int) -> None:
        """Count the events of the buckets before `now`."""
        end = int(np.searchsorted(self.bucket_N, now))
        coming = slice(self.end, end)
        for counts_V in self.counts_SV:
            np.add.at(counts_V, self.item_N[coming], self.count_N[coming])
        for number, span in enumerate(SPANS):
            begin = int(np.searchsorted(self.bucket_N, now - span))
            going = slice(self.begin_S[number], begin)
            np.subtract.at(self.counts_SV[number], self.item_N[going], self.count_N[going])
            self.begin_S[number] = begin
        self.end = end

    def _chosen(self, now: int) -> Integers:
        """The items of the moment, [M] at most: the first of each list, then the second of each, and so on."""
        active = np.flatnonzero(self.counts_SV[len(SPANS) - 1])
        known = int(np.searchsorted(self.newest_since, now * BUCKET))
        lists = [self.newest[max(known - self.size, 0) : known][::-1]]
        for counts_V in self.counts_SV[:-1]:
            there = active[counts_V[active] > 0]
            count = -counts_V[there]
            if len(there) > self.size:
                most = np.argpartition(count, self.size - 1)[: self.size]
                there, count = there[most], count[most]
            lists.append(there[np.lexsort((there, count))])
        every = np.concatenate(lists)
        np.minimum.at(self.rank_V, every, np.concatenate([np.arange(len(items)) for items in lists]))
        items = np.unique(every)
        chosen = items[np.argsort(self.rank_V[items], kind="stable")[: self.size]]
        self.rank_V[every] = self.size
        return chosen
