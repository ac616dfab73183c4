"""Which rows of the tables training may have changed: what an incremental checkpoint has to hold.

    R  a worker's rows of a table

A byte for each row that this worker holds, set where TorchRec looks it up for a training step (the hook of TorchRec's
own delta tracker, which keeps the ids of every step instead: they grow with the steps, a byte a row does not).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings.sharding import table_states
from embeddings.tables import Tables


class Touched:
    """The rows that this worker holds of each sharded table, and which of them were touched since `clear`.

    A table that every worker has whole, under DDP, is none of these.
    """

    def __init__(self, parallel: DistributedModelParallel, tables: Tables) -> None:
        self.begins: dict[str, int] = {}
        """Where this worker's rows begin, by table."""
        places, rows = dict[str, int](), 0
        for table, weight in table_states(parallel):
            if isinstance(weight, ShardedTensor) and (shards := weight.local_shards()):
                self.begins[table], places[table] = shards[0].metadata.shard_offsets[0], rows
                rows += len(shards[0].tensor)  # where columns are divided all shards have the same rows
        device = next(parallel.parameters()).device
        self.all_R = torch.zeros(rows, dtype=torch.bool, device=device)
        ends = [*places.values(), rows][1:]
        self.marks = {table: self.all_R[place:end] for (table, place), end in zip(places.items(), ends, strict=True)}
        """By table, one after the other in `all_R`: [R]."""
        self.places, self.of_keys = places, dict[tuple[str, ...], Tensor]()
        tables.collection.register_post_lookup_tracker_fn(self._looked_up)

    def _looked_up(self, features: KeyedJaggedTensor, *_: Any) -> None:
        """Rows by table, or by table and part of its columns; lengths are on the device, so no table is cut out."""
        keys = tuple(features.keys())
        if not torch.is_grad_enabled() or keys[0] not in self.places:
            return
        if keys not in self.of_keys:
            self.of_keys[keys] = torch.tensor([self.places[key] for key in keys], device=self.all_R.device)
        row_N, lengths_F = features.values(), features.lengths().view(len(keys), -1).sum(1)
        self.all_R[row_N + self.of_keys[keys].repeat_interleave(lengths_F, output_size=len(row_N))] = True

    def mark(self, table: str, row_N: Tensor) -> None:
        """Rows of the whole table, of which this worker may hold some."""
        if (marks_R := self.marks.get(table)) is not None:
            row_N = row_N - self.begins[table]
            marks_R[row_N[(row_N >= 0) & (row_N < len(marks_R))].to(marks_R.device)] = True

    def rows(self) -> dict[str, Tensor]:
        """By table the touched ones among this worker's rows, ascending."""
        return {table: marks_R.nonzero().flatten() for table, marks_R in self.marks.items()}

    def clear(self) -> None:
        self.all_R.zero_()
