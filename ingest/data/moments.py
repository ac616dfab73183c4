"""What a request may know of the items at its moment: which are taken lately, how often, and which are new.

    G  moments, `step` apart     M  items of each     V  the catalogue     F  features of an item at a moment
    B  values of a feature that is known at the request, in each of `BY_SPANS`

From the activity that prepare has counted: of each moment the first M items of several lists (most taken of the last
spans of time, newest), taken in turn. Only what lies before a moment counts, so neither a target nor what came after it
is known. Memory is [G, M], and [V] for the counts while they are made; both times B with a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers
from ingest.data.activity import BUCKET, read_activity, read_activity_by
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.durations import duration_text, parse_duration
from ingest.errors import InputError
from ingest.features.elapsed import MISSING_TIME
from ingest.features.feature import FIRST_VALUE, PADDING, dated

NEVER = np.iinfo(np.int64).max
EVER = 2**40
"""In buckets: more than there are."""

SPANS = tuple(parse_duration(span) // BUCKET for span in ("15m", "1h", "6h", "1d", "7d"))
"""In buckets: the spans of the counts. One more count is of all time before the moment."""
FEATURES = len(SPANS) + 2
BY_SPANS = tuple(parse_duration(span) // BUCKET for span in ("15m", "1h", "1d"))
"""The spans of the counts by a feature."""


@dataclass(frozen=True)
class Snapshots:
    """The items of each moment from `first` on, padded."""

    first: int
    """The first moment, in steps since 1970."""
    item_GM: Integers
    feature_GMF: NDArray[np.float32]
    """log(1 + events) of each of `SPANS` and of all time; log(1 + hours) since the item is there. Zeros for padding."""
    by_GMB: NDArray[np.float32]
    """log(1 + events) with each value of the feature, of one span after the other; of no column without one."""

    def by(self, moment_Q: Integers, value_Q: Integers) -> NDArray[np.float32]:
        """log(1 + events) of each item of moments, counted from the first, with one value each: [Q, M, spans]."""
        values = self.by_GMB.shape[2] // len(BY_SPANS)
        column_QS = value_Q[:, None] + values * np.arange(len(BY_SPANS))
        place_M = np.arange(self.by_GMB.shape[1])
        return self.by_GMB[moment_Q[:, None, None], place_M[:, None], column_QS[:, None]]


def take_snapshots(
    url: str, manifest: Manifest, items: ItemTable, step: int, size: int, total: bool, by: str | None = None
) -> Snapshots:
    """The snapshots of the prepared data set `url`, every `step` milliseconds, of `size` items each.

    An item is there from the date on that the first feature of kind `elapsed` has for it, else from its first event.

    `total`: of the events of all splits, else of the training data's. The last moment is the one after the last of
    these events. `by`: a feature that is known at the request. Raises `InputError` where prepare has counted no
    activity, and where all moments together take more than half of this machine's memory.
    """
    item_N, bucket_N, count_N = _counted(read_activity(url), total)
    buckets, first = step // BUCKET, manifest.first_time // step
    last = int(bucket_N[-1]) // buckets + 1 if len(bucket_N) else first
    _check_memory(url, last + 1 - first, step, size * (8 + 4 * FEATURES + 4 * len(BY_SPANS) * _values(manifest, by)))
    since_V = _since(manifest, items)
    first_item, place = np.unique(item_N, return_index=True)
    first_time = bucket_N[place] * BUCKET
    since_V[first_item] = np.where(since_V[first_item] == NEVER, first_time, since_V[first_item])
    counts, by_value = _Windows(item_N, bucket_N, count_N, len(since_V), (*SPANS, EVER)), None
    if by is not None:
        item_N, bucket_N, value_N, count_N = _counted(read_activity_by(url, by), total)
        values = _values(manifest, by)
        by_value = _Windows(item_N * values + value_N, bucket_N, count_N, len(since_V) * values, BY_SPANS)
    return _Sweep(counts, by_value, since_V, size).snapshots(first, last + 1, buckets)


def _values(manifest: Manifest, by: str | None) -> int:
    return 0 if by is None else manifest.feature(by).size


def _check_memory(url: str, moments: int, step: int, bytes_of_one: int) -> None:
    gib, has = moments * bytes_of_one / 2**30, psutil.virtual_memory().total / 2**30
    if gib > has / 2:
        raise InputError(
            f"{url}: from the first training event to the last event there are {moments:,} moments of "
            f"{duration_text(step)}, which take {gib:.1f} GiB of memory, and this machine has {has:.1f}: take a longer "
            "moments.step or fewer moments.items, or leave out events that lie long before all others"
        )


def _counted(parts: Iterator[tuple[Integers, ...]], total: bool) -> Integers:
    """Items, buckets, values where there are any, and counts, by time."""
    kept = []
    for *keys, training, every in parts:
        count = every if total else training
        kept.append(np.stack([*keys, count])[:, count > 0])
    found = np.concatenate(kept, axis=1)
    return found[:, np.argsort(found[1], kind="stable")]


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


class _Windows:
    """Counts of keys in spans of time before a moment; from one to the next only what comes and goes is counted."""

    def __init__(
        self, key_N: Integers, bucket_N: Integers, count_N: Integers, keys: int, spans: tuple[int, ...]
    ) -> None:
        self.key_N, self.bucket_N, self.spans = key_N, bucket_N, spans
        self.count_N = count_N.astype(np.float32)  # of one type: many times as fast
        self.counts_SK = np.zeros((len(spans), keys), dtype=np.float32)
        self.begin_S = np.zeros(len(spans), dtype=np.int64)
        self.end = 0

    def advance(self, now: int) -> None:
        """Count the events of the buckets before `now`."""
        end = int(np.searchsorted(self.bucket_N, now))
        coming = slice(self.end, end)
        for number, (counts_K, span) in enumerate(zip(self.counts_SK, self.spans, strict=True)):
            np.add.at(counts_K, self.key_N[coming], self.count_N[coming])
            begin = int(np.searchsorted(self.bucket_N, now - span))
            going = slice(self.begin_S[number], begin)
            np.subtract.at(counts_K, self.key_N[going], self.count_N[going])
            self.begin_S[number] = begin
        self.end = end


class _Sweep:
    """Goes from one moment to the next."""

    def __init__(self, counts: _Windows, by_value: _Windows | None, since_V: Integers, size: int) -> None:
        self.counts, self.by_value, self.size = counts, by_value, size
        self.values = 0 if by_value is None else by_value.counts_SK.shape[1] // len(since_V)
        self.since_V = since_V
        self.newest = np.argsort(since_V, kind="stable")
        self.newest_since = since_V[self.newest]
        self.rank_V = np.full(len(since_V), size, dtype=np.int64)

    def snapshots(self, first: int, until: int, buckets: int) -> Snapshots:
        moments = max(until - first, 1)
        item_GM = np.full((moments, self.size), PADDING, dtype=np.int64)
        feature_GMF = np.zeros((moments, self.size, FEATURES), dtype=np.float32)
        by_GMB = np.zeros((moments, self.size, len(BY_SPANS) * self.values), dtype=np.float32)
        for g in range(moments):
            now = (first + g) * buckets
            self.counts.advance(now)
            item_M = self._chosen(now)
            item_GM[g, : len(item_M)] = item_M
            found = feature_GMF[g, : len(item_M)]
            found[:, : len(SPANS) + 1] = np.log1p(self.counts.counts_SK[:, item_M]).T
            age_M = np.maximum(now * BUCKET - self.since_V[item_M], 0)  # an item may be taken before its date
            found[:, -1] = np.log1p(age_M / parse_duration("1h"))
            if self.by_value is not None:
                self.by_value.advance(now)
                counts_SVB = self.by_value.counts_SK.reshape(len(BY_SPANS), -1, self.values)
                by_GMB[g, : len(item_M)] = np.log1p(np.concatenate(counts_SVB[:, item_M], axis=1))
        return Snapshots(first, item_GM, feature_GMF, by_GMB)

    def _chosen(self, now: int) -> Integers:
        """The items of the moment, [M] at most: the first of each list, then the second of each, and so on."""
        *counts_SV, longest_V, _ = self.counts.counts_SK
        active = np.flatnonzero(longest_V)
        known = int(np.searchsorted(self.newest_since, now * BUCKET))
        lists = [self.newest[max(known - self.size, 0) : known][::-1]]
        for counts_V in (*counts_SV, longest_V):
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
