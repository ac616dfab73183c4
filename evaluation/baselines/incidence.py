"""Which users' training rows have which items, and how often: what nearest neighbours are counted from.

R  training rows, the newest first: by the time of their last event     N  different items of all rows
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ingest.arrays.jagged import Integers, concat
from ingest.data.shards import StoredRows
from ingest.features.feature import FIRST_VALUE


@dataclass(frozen=True)
class Incidence:
    """`row_N` ascends, and `item_N` within a row; `count_N`: how often the row has the item."""

    rows: int
    row_N: Integers
    item_N: Integers
    count_N: Integers

    @classmethod
    def of(cls, training: Iterable[StoredRows], catalogue: int) -> Incidence:
        """Of all training rows, on every worker: memory grows with the interactions."""
        rows, last = 0, [np.zeros(0, np.int64)]
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for stored in training:
            row_M = np.repeat(np.arange(len(stored)), stored.lengths)
            key_M = row_M * catalogue + stored.columns["item"]
            key, count = np.unique(key_M, return_counts=True)
            row, item = np.divmod(key, catalogue)
            known = item >= FIRST_VALUE
            parts.append(np.stack([rows + row, item, count])[:, known])
            last.append(stored.columns["time"].take(stored.offsets[1:] - 1))
            rows += len(stored)
        row_N, item_N, count_N = np.concatenate(parts, axis=1)
        newest_R = np.argsort(-concat(last), kind="stable")
        renumbered_R = np.empty_like(newest_R)
        renumbered_R[newest_R] = np.arange(rows)
        row_N = renumbered_R[row_N]
        order = np.argsort(row_N, kind="stable")
        return cls(rows, row_N[order], item_N[order], count_N[order])
