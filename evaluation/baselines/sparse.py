"""A sparse matrix whose rows are added to scores: from items, or from training rows, to this worker's items.

R  rows of the matrix     N  its entries     v  items of this worker's slice     Q  queries     L  rows of each
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.arrays.jagged import Integers, cut, offsets_of, ranges

ENTRIES_AT_ONCE = 2**22
"""Entries that are added at once, about; each takes some 40 bytes."""


class SparseRows:
    """`value_N` at rows `row_N` and columns `column_N` of a matrix [R, v]."""

    def __init__(self, row_N: Integers, column_N: Integers, value_N: NDArray[np.float64], rows: int) -> None:
        order = np.argsort(row_N, kind="stable")
        self.column_N, self.value_N = column_N[order].astype(np.int32), value_N[order]
        self.offsets = offsets_of(np.bincount(row_N, minlength=rows))

    def add(self, scores_Qv: Tensor, row_QL: Tensor, weight_QL: Tensor) -> None:
        """Add to each query's scores its rows, multiplied by their weights; those of weight 0 are not looked at.

        Sums are made in the order of L on every number of workers.
        """
        query_M, place_M = weight_QL.cpu().numpy().nonzero()
        row_M, weight_M = (table.cpu().numpy()[query_M, place_M] for table in (row_QL, weight_QL))
        lengths_M = self.offsets[row_M + 1] - self.offsets[row_M]
        for begin, end in pairwise(cut(lengths_M, ENTRIES_AT_ONCE)):
            part = slice(begin, end)
            entries = ranges(self.offsets[row_M[part]], lengths_M[part])
            query_N, column_N, value_N = (
                torch.from_numpy(values).to(scores_Qv.device)
                for values in (
                    np.repeat(query_M[part], lengths_M[part]),
                    self.column_N[entries].astype(np.int64),
                    np.repeat(weight_M[part], lengths_M[part]) * self.value_N[entries],
                )
            )
            scores_Qv.index_put_((query_N, column_N), value_N.to(scores_Qv.dtype), accumulate=True)


def or_popular(scores_Qv: Tensor, popularity_v: Tensor) -> Tensor:
    """The scores, and behind them the items that have none, the more popular first: [Q, v]."""
    return torch.where(scores_Qv > 0, scores_Qv, popularity_v - 1)
