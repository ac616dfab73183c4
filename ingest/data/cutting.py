"""Cuts users' rows into sequences, and rows that are too long for a batch into parts.

R  rows        P  parts of rows        B  sequences
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers, ranges

SEEN = 4_194_304
"""Of a batch, about: how many items the histories of its targets have together, when evaluating; they take 32 MiB."""


@dataclass(frozen=True)
class Parts:
    """Parts of rows: each has its row's interactions from the first up to its own last target."""

    row_P: Integers
    length_P: Integers
    targets_P: Integers

    def __len__(self) -> int:
        return len(self.row_P)

    def take(self, index: NDArray[np.int64]) -> Parts:
        return Parts(self.row_P[index], self.length_P[index], self.targets_P[index])


@dataclass(frozen=True)
class Cutting:
    """How rows are cut.

    A row of more than `max_length` + 1 interactions gives, with `windows`, several sequences that hold every target
    once, each with at least half of `max_length` of history where there is one; without, its last alone. With
    `after_last` a row has one interaction more, which nobody knows yet, and that is its one target.
    """

    max_length: int
    windows: bool = False
    after_last: bool = False

    @property
    def stride(self) -> int:
        return max(self.max_length // 2, 1)

    def sequences(self, parts: Parts) -> tuple[Integers, Integers, Integers, Integers]:
        """Part, start, end and number of targets of every sequence; the last interaction is no input."""
        lengths, targets = parts.length_P, parts.targets_P
        if self.after_last:
            lengths, targets = lengths + 1, np.ones_like(targets)
        span, stride = self.max_length, self.stride
        count = self._count(lengths, targets)
        part = np.repeat(np.arange(len(lengths)), count)
        nth = ranges(np.zeros_like(count), count)
        ends = lengths[part] - nth * stride
        starts = np.maximum(ends - span - 1, 0)
        limit = np.where(nth + 1 < count[part], stride, ends - starts - 1)
        return part, starts, ends, np.minimum(targets[part] - nth * stride, limit)

    def _count(self, lengths: Integers, targets: Integers) -> Integers:
        """How many sequences each gives."""
        if not self.windows or self.after_last:
            return np.ones(len(lengths), dtype=np.int64)
        until_whole = -(-np.maximum(lengths - self.max_length - 1, 0) // self.stride)
        return np.minimum(np.maximum(-(-targets // self.stride), 1), 1 + until_whole)

    def parts(self, lengths: Integers, targets: Integers, tokens: int, seen: bool) -> Parts:
        """[R] interactions and targets -> the rows, one after the other, each as a whole where it gives no more than
        `tokens` tokens and otherwise in parts, its oldest targets first, which have the same sequences.

        With `seen`, parts are also so small that the histories of all their targets have at most `SEEN` items. A part
        has at least one sequence.
        """
        most = np.full_like(lengths, max(tokens // self.max_length, 1))
        if seen:
            most = np.minimum(most, np.maximum(SEEN // np.maximum(lengths * self.stride, 1), 1))
        windows = self._count(lengths, targets)
        count = -(-windows // most)
        row = np.repeat(np.arange(len(lengths)), count)
        nth = count[row] - 1 - ranges(np.zeros_like(count), count)  # the oldest interactions first
        before = nth * (most * self.stride)[row]
        own = np.where(nth + 1 < count[row], (most * self.stride)[row], targets[row] - before)
        return Parts(row, lengths[row] - before, own)

    def cost(self, parts: Parts, tokens: int, seen: bool) -> Integers:
        """What each part takes of a batch of `tokens`: its tokens, and, with `seen`, its targets' histories, of which a
        batch has no more than `SEEN`."""
        part, starts, ends, _ = self.sequences(parts)
        cost = np.bincount(part, weights=ends - starts - 1, minlength=len(parts)).astype(np.int64)
        targets = 1 if self.after_last else parts.targets_P
        return cost + parts.length_P * targets * tokens // SEEN if seen else cost
