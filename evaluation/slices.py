"""A worker's slice of the catalogue: a block of the known items' rows, and one of the rows behind them.

Known items have rows of the item table; the others, which training has never or too seldom seen, lie behind, in the
order of their indices.

N  rows, of any worker     v  rows of the slice     Q  queries     L  items of each
"""

from __future__ import annotations

import torch
from torch import Tensor

from embeddings.workers import Worker, own_rows
from ingest.features.feature import FIRST_VALUE


class CatalogueSlice:
    """`items`: rows of the known items, padding and unknown included; `catalogue`: rows of all items."""

    def __init__(self, items: int, catalogue: int, worker: Worker) -> None:
        self.items = items
        self.begin, self.end = own_rows(items, worker.rank, worker.workers)
        other, last = own_rows(catalogue - items, worker.rank, worker.workers)
        self.other, self.last = items + other, items + last
        self.known = self.end - self.begin
        """How many of its columns are known items; they come first."""

    def __len__(self) -> int:
        return self.known + self.last - self.other

    @property
    def rows(self) -> Tensor:
        """The rows of its columns: int64 [v], on the CPU."""
        return torch.cat([torch.arange(self.begin, self.end), torch.arange(self.other, self.last)])

    def columns(self, row_N: Tensor) -> Tensor:
        """The columns of rows, -1 for those of other workers: int64 [N]."""
        known_N = torch.where((row_N >= self.begin) & (row_N < self.end), row_N - self.begin, -1)
        return torch.where((row_N >= self.other) & (row_N < self.last), row_N - self.other + self.known, known_N)

    def entries(self, item_QL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of items of queries, padded, those of this slice: query, place and column of each of N, int64 [N] each."""
        column_QL = self.columns(item_QL)
        query_N, place_N = ((item_QL >= FIRST_VALUE) & (column_QL >= 0)).nonzero(as_tuple=True)
        return query_N, place_N, column_QL[query_N, place_N]

    def rows_of(self, column_N: Tensor) -> Tensor:
        """The rows of columns, int64 [N]."""
        return torch.where(column_N < self.known, column_N + self.begin, column_N - self.known + self.other)
