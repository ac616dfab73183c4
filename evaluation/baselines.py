"""Baselines without a network: popularity, and last-item Markov. Both count the training rows once.

Q  targets     V  items     v  items of this worker's slice
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embeddings.workers import Worker, own_rows
from evaluation.ranking import InOrder
from ingest.arrays.jagged import Jagged, ranges
from ingest.data.batch import Batch
from ingest.data.items import ItemTable
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE


class Popularity(InOrder):
    """Scores every item by how often the training data have it, for everybody alike."""

    def __init__(self, items: ItemTable, worker: Worker) -> None:
        begin, end = own_rows(items.size, worker.rank, worker.workers)
        self.counts_v = torch.from_numpy(items.counts[begin:end].astype(np.float32)).to(worker.device)

    def queries(self, batch: Batch) -> Tensor:
        return batch.target_Q.new_zeros(len(batch.target_Q), 1)

    def scores(self, queries: Tensor) -> Tensor:
        return self.counts_v.repeat(len(queries), 1)


class Markov(InOrder):
    """Scores an item by how often it came right after the user's last item; the more popular first among equals.

    Each worker counts the transitions into its own slice of items.
    """

    def __init__(self, items: ItemTable, reader: Reader, worker: Worker) -> None:
        self.items, self.worker = items, worker
        self.begin, self.end = own_rows(items.size, worker.rank, worker.workers)
        popularity = items.counts[self.begin : self.end] / (items.counts.sum() + 1.0)
        self.popularity_v = torch.from_numpy(popularity).to(worker.device)
        self.next, self.counts = self._count(reader)

    def _count(self, reader: Reader) -> tuple[Jagged, np.ndarray]:
        """The items that followed each item, jagged by item, and how often."""
        width = self.end - self.begin
        pairs = np.empty(0, dtype=np.int64)
        counts = np.empty(0, dtype=np.int64)
        for rows in reader.rows():
            item = Jagged(rows.columns["item"], rows.offsets)
            inner = np.ones(len(item.values), dtype=bool)
            inner[item.offsets[:-1][item.lengths > 0]] = False
            after = np.flatnonzero(inner)
            before, following = item.values[after - 1].astype(np.int64), item.values[after].astype(np.int64)
            own = (before >= FIRST_VALUE) & (following >= max(self.begin, FIRST_VALUE)) & (following < self.end)
            found, number = np.unique(before[own] * width + following[own] - self.begin, return_counts=True)
            pairs, places = np.unique(np.concatenate([pairs, found]), return_inverse=True)
            counts = np.bincount(places, weights=np.concatenate([counts, number]), minlength=len(pairs)).astype(
                np.int64
            )
        lengths = np.bincount(pairs // max(width, 1), minlength=self.items.size)
        return Jagged.from_lengths(pairs % max(width, 1), lengths), counts

    def queries(self, batch: Batch) -> Tensor:
        return batch.item_T[batch.target_position_Q][:, None]

    def scores(self, queries: Tensor) -> Tensor:
        last = queries[:, 0].cpu().numpy()
        scores_Qv = self.popularity_v.repeat(len(last), 1)
        starts, lengths = self.next.offsets[last], self.next.lengths[last]
        entries = ranges(starts, lengths)
        row = torch.from_numpy(np.repeat(np.arange(len(last)), lengths)).to(scores_Qv.device)
        column = torch.from_numpy(self.next.values[entries]).to(scores_Qv.device)
        scores_Qv[row, column] += torch.from_numpy(self.counts[entries].astype(np.float64)).to(scores_Qv.device)
        return scores_Qv
