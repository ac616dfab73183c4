"""Jagged arrays: values and offsets, as Arrow's lists are and as TorchRec's tensors want them.

    N  values in all        R  rows        offsets_R1  row r holds values[offsets[r]:offsets[r + 1]]

All functions are vectorised numpy or compiled: their Python time does not depend on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.arrays import kernels

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Jagged:
    """Rows of different lengths: `values` of shape [N] and `offsets` of shape [R + 1], beginning with 0."""

    values: NDArray
    offsets: Integers

    @property
    def lengths(self) -> Integers:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray) -> Jagged:
        """The given rows, in the given order; a row may come several times."""
        starts = self.offsets[rows]
        return self.slices(starts, self.offsets[rows + 1] - starts)

    def slices(self, starts: NDArray, lengths: NDArray) -> Jagged:
        """One row for each run of `lengths` values that begins at `starts` in `values`."""
        return Jagged(self.values[ranges(starts, lengths)], offsets_of(lengths))

    @classmethod
    def from_lengths(cls, values: NDArray, lengths: NDArray) -> Jagged:
        return cls(values, offsets_of(lengths))

    @classmethod
    def concat(cls, parts: list[Jagged]) -> Jagged:
        """The rows of all parts, one part after the other; there must be one at least."""
        begins = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[:-1] + begin for part, begin in zip(parts, begins, strict=False)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([*offsets, begins[-1:]]))

    @classmethod
    def from_arrow(cls, column: pa.ListArray) -> Jagged:
        """A list column without nulls; its values are not copied where Arrow allows it."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
        return cls(values, offsets - offsets[0])


def offsets_of(lengths: NDArray) -> Integers:
    """[R] lengths -> [R + 1] offsets."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: NDArray, lengths: NDArray) -> Integers:
    """The integers start, start + 1, ... of every run, one run after the other: shape [sum(lengths)]."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)


def cut(sizes: Integers, limit: int) -> Integers:
    """The bounds, 0 and [R] included, of consecutive intervals of `sizes` [R] that sum to `limit` at most, or hold a
    single one that is larger."""
    bounds = np.empty(len(sizes) + 1, dtype=np.int64)
    return bounds[: kernels.cut(sizes, limit, bounds)].copy()
