"""Shards of tables written to a checkpoint in pieces, so that saving and loading hold a piece twice and not the shard.

DCP copies a shard before it writes it, because fbgemm keeps all tables of a worker in one storage, and reads a stored
shard whole whatever it needs of it. Pieces are shards to it: any worker may load them, under any sharding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

PIECE_BYTES = 2**25


class SaveInPieces(DefaultSavePlanner):
    """Cuts every tensor of more than `PIECE_BYTES` into ranges of rows."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.wholes: dict[MetadataIndex, tuple[MetadataIndex, int, int]] = {}
        self.plan = dataclasses.replace(plan, items=[piece for item in plan.items for piece in self._pieces(item)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        if index not in self.wholes:
            return super().lookup_object(index)
        whole, row, rows = self.wholes[index]
        part: Tensor = super().lookup_object(whole).narrow(0, row, rows)
        return part

    def _pieces(self, item: WriteItem) -> Iterator[WriteItem]:
        data = item.tensor_data
        if data is None or not data.chunk.sizes or math.prod(data.chunk.sizes) == 0:
            yield item
            return
        offsets, (rows, *others) = data.chunk.offsets, data.chunk.sizes
        at_once = max(
            1, PIECE_BYTES // (math.prod(others) * torch.empty((), dtype=data.properties.dtype).element_size())
        )
        if rows <= at_once:
            yield item
            return
        for row in range(0, rows, at_once):
            taken = min(at_once, rows - row)
            offset = torch.Size([offsets[0] + row, *offsets[1:]])
            index = MetadataIndex(item.index.fqn, offset)
            self.wholes[index] = item.index, row, taken
            chunk = ChunkStorageMetadata(offsets=offset, sizes=torch.Size([taken, *others]))
            written = dataclasses.replace(data, chunk=chunk)
            yield dataclasses.replace(item, index=index, type=WriteItemType.SHARD, tensor_data=written)
