"""Jagged arrays: values and offsets, as Arrow's lists are and as TorchRec's tensors want them.

    N  values in all        R  rows        offsets_R1  row r holds values[offsets[r]:offsets[r + 1]]

All functions are vectorised numpy: their Python time does not depend on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Jagged:
    """Rows of different lengths: `values` of shape [N] and `offsets` of shape [R + 1], beginning with 0."""

    values: NDArray[Any]
    offsets: Integers

    @property
    def lengths(self) -> Integers:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[Any]) -> Jagged:
        """The given rows, in the given order; a row may come several times."""
        starts = self.offsets.take(rows)
        lengths = self.offsets.take(rows + 1) - starts
        return Jagged.from_lengths(self.values.take(ranges(starts, lengths)), lengths)

    @classmethod
    def from_lengths(cls, values: NDArray[Any], lengths: NDArray[Any]) -> Jagged:
        return cls(values, offsets_of(lengths))

    @classmethod
    def from_arrow(cls, column: pa.ListArray) -> Jagged:
        """A list column without nulls; its values are not copied where Arrow allows it."""
        return cls(column.flatten().to_numpy(zero_copy_only=False), arrow_offsets(column))


Column: TypeAlias = NDArray[Any] | Jagged
"""A value, or a list of values, for each of something: `take` gives those of some, whichever it is."""


def concat(columns: list[Any]) -> Any:
    """Columns of one kind, of which there is one at least, one after the other."""
    if not isinstance(columns[0], Jagged):
        return np.concatenate(columns)
    values, lengths = ([getattr(column, name) for column in columns] for name in ("values", "lengths"))
    return Jagged.from_lengths(np.concatenate(values), np.concatenate(lengths))


def arrow_offsets(column: pa.ListArray) -> Integers:
    """The offsets of a list column, from 0 on also where it is a slice of another."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def offsets_of(lengths: NDArray[Any]) -> Integers:
    """[R] lengths -> [R + 1] offsets."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> Integers:
    """The integers start, start + 1, ... of every run, one run after the other: shape [sum(lengths)]."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)


def cut(sizes: Integers, limit: int) -> Integers:
    """The bounds, 0 and [R] included, of consecutive intervals of `sizes` [R] that sum to `limit` at most, or hold a
    single one that is larger."""
    total = offsets_of(sizes)
    end_of = np.searchsorted(total, total[:-1] + limit, side="right") - 1
    bounds = [0]
    while (begin := bounds[-1]) < len(sizes):
        bounds.append(max(int(end_of[begin]), begin + 1))
    return np.array(bounds, dtype=np.int64)
