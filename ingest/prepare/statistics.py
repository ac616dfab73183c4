"""What is learned from a log part by part: counts of values, means and deviations, exact quantiles.

Parts are put together in the order of the partitions, so the result does not depend on who counted what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

ROWS_AT_ONCE = 4_000_000
"""Rows of counts that are read before they are summed."""
DIGITS = 8
"""Passes of a quantile's search: one for each byte of a 64-bit number."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared differences from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray, weights: NDArray | None = None) -> Moments:
        """Of `values`, each counted as often as its weight says. Shapes [N]."""
        count = len(values) if weights is None else int(weights.sum())
        if not count:
            return cls()
        mean = float(np.average(values, weights=weights))
        return cls(
            count, mean, float(np.dot((values - mean) ** 2, np.ones(len(values)) if weights is None else weights))
        )

    def merged(self, other: Moments) -> Moments:
        """Of both (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / count
        return Moments(count, mean, self.squares + other.squares + difference**2 * self.count * other.count / count)

    @property
    def deviation(self) -> float:
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


def summed(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Counts by value, put together: `count` and `total` are summed, of `first` the earliest is kept."""
    how = {"count": pl.col("count").sum(), "total": pl.col("total").sum(), "first": pl.col("first").min()}
    waiting: list[pl.DataFrame] = []
    rows, least = 0, 0
    for frame in frames:
        waiting.append(frame)
        rows += frame.height
        if rows >= max(ROWS_AT_ONCE, 2 * least):
            waiting = [_grouped(waiting, how)]
            rows = least = waiting[0].height
    return _grouped(waiting, how)


def _grouped(frames: list[pl.DataFrame], how: dict[str, pl.Expr]) -> pl.DataFrame:
    together = pl.concat(frames)
    return together.group_by("value").agg(expression for name, expression in how.items() if name in together.columns)


def sortable(values: pa.Array) -> NDArray[np.uint64]:
    """64-bit integers or floats as unsigned integers in the same order; nulls are left out."""
    known = values.drop_null().to_numpy(zero_copy_only=False)
    sign = np.uint64(1 << 63)
    if known.dtype.kind == "f":
        bits = (known.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 becomes 0.0
        return np.where(bits & sign, ~bits, bits | sign)
    return known.astype(np.int64).view(np.uint64) ^ sign


def unsortable(key: int, is_float: bool) -> float:
    """The number that `sortable` made `key` of."""
    sign = 1 << 63
    if not is_float:
        return int(np.uint64(key ^ sign).astype(np.int64))
    return float(np.uint64(key ^ sign if key & sign else ~key & (2**64 - 1)).view(np.float64))


def digits(keys: NDArray[np.uint64], prefixes: Sequence[int], done: int) -> dict[str, list[int]]:
    """How often each next byte comes among the keys that begin with each of `prefixes`, `done` bytes long."""
    shift = np.uint64(8 * (DIGITS - 1 - done))
    found = {}
    for prefix in prefixes:
        chosen = keys if not done else keys[keys >> np.uint64(8 * (DIGITS - done)) == np.uint64(prefix)]
        byte = ((chosen >> shift) & np.uint64(255)).astype(np.uint8)
        found[str(prefix)] = np.bincount(byte, minlength=256).tolist()
    return found


Count = Callable[[Sequence[int], int], Iterable[dict[str, list[int]]]]


def select(count: Count, places: Callable[[int], list[int]]) -> list[int]:
    """The keys at some places of all keys in order: a radix search, byte by byte, over parts that are never together.

    `count(prefixes, done)` gives `digits` of every part; `places` takes the number of all keys.
    """
    wanted: list[tuple[int, int]] = []
    for done in range(DIGITS):
        prefixes = sorted({prefix for prefix, _ in wanted}) if done else [0]
        histograms = {prefix: np.zeros(256, dtype=np.int64) for prefix in prefixes}
        for part in count(prefixes, done):
            for prefix in prefixes:
                histograms[prefix] += np.array(part[str(prefix)])
        if not done:
            number = int(histograms[0].sum())
            wanted = [(0, place) for place in places(number)] if number else []
        following = []
        for prefix, place in wanted:
            sums = np.cumsum(histograms[prefix])
            byte = int(np.searchsorted(sums, place, side="right"))
            following.append((prefix << 8 | byte, place - int(sums[byte - 1] if byte else 0)))
        wanted = following
    return [prefix for prefix, _ in wanted]
