"""TorchRec's managed collision (ZCH): a feature's many values share a table of few rows, held by those that are seen.

    index of the vocabulary -> row, for the values that hold one; all others share the last row

Every `interval` steps the values seen since then compete for rows; a value that comes in begins with a fresh row and no
optimizer state. New values of a vocabulary that has grown need no larger table.

TorchRec's sharded form of it exists for row-wise tables alone, keeps other values on every number of workers, and fails
on CPU (`fbgemm::reset_weight_momentum` has no CPU kernel). So its MCHManagedCollisionModule is used whole on every
worker, fed with what all workers look up: the same mapping on any number of workers, for 24 to 32 bytes a row and one
exchange of ids a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchrec import JaggedTensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)

from embeddings.table_config import CollisionConfig
from embeddings.workers import gather_rows

_POLICIES: dict[str, Callable[[], Any]] = {
    "distance_lfu": DistanceLFU_EvictionPolicy,
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
}
Reset = Callable[[str, Tensor, Tensor], None]
"""Puts new values [N, D] into rows [N] of a table and clears their optimizer state, wherever they are."""


class Collisions:
    """The mapping of every table that has one; the same on all workers."""

    def __init__(self, config: dict[str, CollisionConfig], dimension: int, deviation: float, seed: int) -> None:
        self.config, self.dimension, self.deviation, self.seed = config, dimension, deviation, seed
        self.modules: dict[str, MCHManagedCollisionModule] = {}

    def place(self, device: torch.device, reset: Reset) -> None:
        """Make the mappings on `device`."""
        self.reset = reset
        for table, settings in self.config.items():
            policy = _POLICIES[settings.eviction]()
            self.modules[table] = MCHManagedCollisionModule(
                settings.size, device, policy, settings.interval, name=table
            )

    def rows(self, table: str, index_N: Tensor, training: bool) -> Tensor:
        """The rows of the values `index_N`; in training, which all workers call at once, they are noted first."""
        module = self.modules[table].train(training)
        if training:
            seen, _ = gather_rows(index_N.long())
            _reserve(module, len(seen))
            module.profile({table: JaggedTensor(seen, lengths=torch.tensor([len(seen)], device=seen.device))})
            self._evict(table, module)
        lengths = torch.tensor([len(index_N)], device=index_N.device)
        remapped = module.remap({table: JaggedTensor(index_N.long(), lengths=lengths)})
        return remapped[table].values()

    def _evict(self, table: str, module: MCHManagedCollisionModule) -> None:
        row_N = module.evict()
        if row_N is None or not len(row_N):
            return
        digest = hashlib.sha256(f"{self.seed}/{table}/evicted/{module._current_iter}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        fresh_ND = torch.empty(len(row_N), self.dimension).normal_(0.0, self.deviation, generator=generator)
        self.reset(table, row_N, fresh_ND)

    def state(self) -> dict[str, Tensor]:
        """The mappings, counters and what has been seen since the last eviction, by names that begin with the table."""
        states: dict[str, Tensor] = {}
        for table, module in self.modules.items():
            seen = module._current_history_buffer_offset
            states |= {f"{table}/module/{name}": value for name, value in module.state_dict().items()}
            states |= {f"{table}/history/{name}": value[:seen] for name, value in module._history_metadata.items()}
            if seen:
                states[f"{table}/history/ids"] = module._history_accumulator[:seen]
            states[f"{table}/progress"] = torch.tensor([module._current_iter, module._last_eviction_iter])
        return states

    def load(self, states: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; empty tensors may be left out."""
        for table, module in self.modules.items():
            module.load_state_dict(_below(states, f"{table}/module/"))
            history = _below(states, f"{table}/history/")
            ids = history.pop("ids", torch.empty(0, dtype=torch.int64))
            module._current_history_buffer_offset = 0
            _reserve(module, len(ids))
            module._history_accumulator[: len(ids)] = ids
            for name, values in history.items():
                module._history_metadata[name][: len(ids)] = values
            module._current_history_buffer_offset = len(ids)
            module._current_iter, module._last_eviction_iter = states[f"{table}/progress"].tolist()


def _below(states: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}


def _reserve(module: MCHManagedCollisionModule, ids: int) -> None:
    """Room for `ids` more: TorchRec drops what the buffer, as large as the first batch made it, has no room for."""
    seen = module._current_history_buffer_offset
    if seen + ids <= module._input_history_buffer_size:
        return
    before = {name: value[:seen] for name, value in module._history_metadata.items()}
    accumulated = module._history_accumulator[:seen] if seen else None
    size = max(2 * (seen + ids), 1024)
    module._input_history_buffer_size = size
    module._history_accumulator = torch.empty(size, dtype=torch.int64, device=module.device)
    if accumulated is not None:
        module._history_accumulator[:seen] = accumulated
    for name, _, kept in module._eviction_policy.metadata_info:
        if kept:
            module._history_metadata[name] = torch.zeros(size, dtype=torch.int64, device=module.device)
            module._history_metadata[name][:seen] = before.get(name, torch.zeros(seen))
