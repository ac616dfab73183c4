"""Which worker holds which rows, and in what memory: TorchRec's planner within what the config says, checked before
anything is allocated.

Memory is added up here and not by the planner, so that a plan that the config forces is checked alike:

    weights           rows x columns x bytes of the precision
    optimizer state   rows x 4 bytes for the row-wise Adagrad, and what the others take
    communication     a step's ids (8 bytes), and its rows four times: looked up and received, forward and backward
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from inspect import signature
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.remote_device import _remote_device
from torchrec import EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import CacheParams, ParameterSharding, ShardingPlan

from embeddings.table_config import PREFIX, TableConfig
from embeddings.workers import gather_objects
from ingest.errors import InputError

GIB = 2**30
_PLANNER_KINDS = ["table_wise", "row_wise", "column_wise"]
_UNLIMITED = 2**60
_ALLOWED_SHARE = 0.85
_STATE_BYTES: dict[str, Callable[[int], int]] = {
    "sgd": lambda columns: 0,
    "rowwise_adagrad": lambda columns: 4,
    "adagrad": lambda columns: 4 * columns,
    "rowwise_adam": lambda columns: 4 * columns + 4,
    "adam": lambda columns: 8 * columns,
}
"""The fused optimizer's state for one row of a shard."""
_BY_HAND = {"created_by_factory": True} if "created_by_factory" in signature(Topology).parameters else {}
"""TorchRec warns of a topology that none of its factories has made; 1.6 has no factories."""
_NAMED = 3
"""Workers and tables that a refusal names."""


@dataclass
class Need:
    """Bytes that one worker needs for its tables."""

    weights: int = 0
    state: int = 0
    communication: int = 0
    on_device: int = 0
    """What of them, and of caches, is in the GPU's memory."""
    on_machine: int = 0


@dataclass(frozen=True)
class Planned:
    """A plan that fits."""

    plan: ShardingPlan
    needs: list[Need]
    """By rank."""
    lookups: Mapping[str, float]
    """Expected rows of each table that a worker looks up in a step."""
    machine: int = 0
    """Bytes of the machine's memory that are each worker's share of it."""

    def parameters(self) -> dict[str, ParameterSharding]:
        return _parameters(self.plan)

    def is_data_parallel(self, table: str) -> bool:
        return self.parameters()[table].sharding_type == "data_parallel"


def make_plan(
    model: nn.Module,
    sharders: list[EmbeddingCollectionSharder],
    tables: list[EmbeddingConfig],
    config: TableConfig,
    device: torch.device,
    lookups: Mapping[str, float],
) -> Planned:
    """The plan for `model`, on the meta device still; the same on every worker.

    Raises `InputError`, on every worker, where a worker would need more memory than it may take.
    """
    planning = _Planning(tables, config, device, lookups)
    found: list[ShardingPlan | None] = [None]
    if dist.get_rank() == 0:
        found = [planning.plan(model, sharders)]
    if len(planning.limits) > 1:
        dist.broadcast_object_list(found, 0)
    (plan,) = found
    assert plan is not None
    put_on(plan, planning.devices)
    planned = Planned(plan, planning.needs(_parameters(plan)), lookups, planning.machine)
    planning.check_fits(planned)
    return planned


def put_on(plan: ShardingPlan, devices: Sequence[str]) -> None:
    """Let each shard be on the device that its worker has; by rank.

    The planner counts devices as if all machines had as many workers as that of the first.
    """
    for parameter in _parameters(plan).values():
        for shard in parameter.sharding_spec.shards if parameter.sharding_spec is not None else ():
            rank = shard.placement.rank()
            shard.placement = _remote_device(f"rank:{rank}/{devices[rank]}")


def _parameters(plan: ShardingPlan) -> dict[str, ParameterSharding]:
    return {name.removeprefix(PREFIX): parameter for part in plan.plan.values() for name, parameter in part.items()}


class _Planning:
    """Tables, what the config says of them, and the bytes of GPU and machine memory that each worker may take."""

    def __init__(
        self, tables: list[EmbeddingConfig], config: TableConfig, device: torch.device, lookups: Mapping[str, float]
    ) -> None:
        self.tables = {table.feature_names[0]: table for table in tables}
        self.config, self.device, self.lookups = config, device, lookups
        self.local_workers = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), dist.get_world_size())
        self.machine = _machine_memory() // self.local_workers
        self.limits = gather_objects(self._limits())
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.devices: list[str] = gather_objects(str(device))

    def _limits(self) -> tuple[int, int]:
        """What this worker may take, in bytes of the GPU's memory and of the machine's."""
        config, hbm = self.config, 0.0
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            hbm = config.hbm_gib * GIB if config.hbm_gib else _ALLOWED_SHARE * total
        ddr = config.ddr_gib * GIB if config.ddr_gib else _ALLOWED_SHARE * self.machine
        return int(hbm), int(ddr)

    def plan(self, model: nn.Module, sharders: list[EmbeddingCollectionSharder]) -> ShardingPlan:
        """The planner's choice within the limits; without them where it finds none, to tell what that would need."""
        constraints = {table.name: self._constraint(name, table) for name, table in self.tables.items()}
        hbm, ddr = (min(values) for values in zip(*self.limits, strict=True))

        def planner(hbm: int, ddr: int) -> EmbeddingShardingPlanner:
            topology = Topology(
                len(self.limits),
                self.device.type,
                hbm_cap=hbm,
                ddr_cap=ddr,
                local_world_size=self.local_workers,
                **_BY_HAND,
            )
            return EmbeddingShardingPlanner(topology=topology, batch_size=1, constraints=constraints, debug=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return planner(hbm, ddr).plan(model, sharders)
            except PlannerError:
                return planner(_UNLIMITED, _UNLIMITED).plan(model, sharders)

    def _constraint(self, name: str, table: EmbeddingConfig) -> ParameterConstraints:
        config = self.config
        chosen = config.sharding.get(name)
        kernel = "dense" if chosen == "data_parallel" else config.kernel.get(name, "fused")
        return ParameterConstraints(
            sharding_types=[chosen] if chosen else _PLANNER_KINDS[:2] if name in config.zch else _PLANNER_KINDS,
            compute_kernels=[kernel],
            pooling_factors=[max(self.lookups.get(name, 1.0), 1.0)],
            cache_params=CacheParams(load_factor=config.cache_load_factor) if kernel == "fused_uvm_caching" else None,
            min_partition=min(table.embedding_dim, 128),
        )

    def needs(self, parameters: Mapping[str, ParameterSharding]) -> list[Need]:
        """What every worker needs, by rank."""
        workers = len(self.limits)
        needs = [Need() for _ in range(workers)]
        for name, table in self.tables.items():
            parameter = parameters[name]
            lookups = self.lookups.get(name, 0.0)
            if parameter.sharding_type not in ("row_wise", "data_parallel"):
                lookups *= workers
            if parameter.sharding_spec is None:
                shards = [(rank, table.num_embeddings, table.embedding_dim) for rank in range(workers)]
            else:
                shards = [(s.placement.rank(), *s.shard_sizes) for s in parameter.sharding_spec.shards]
            for rank, rows, columns in shards:
                self._add(needs[rank], parameter.compute_kernel, rows, columns, lookups)
        return needs

    def _add(self, need: Need, kernel: str, rows: int, columns: int, lookups: float) -> None:
        """A shard's part of what a worker needs."""
        config = self.config
        weights = rows * columns * (2 if config.precision == "fp16" else 4)
        state = 12 * rows * columns if kernel == "dense" else rows * _STATE_BYTES[config.optimizer](columns)
        travelling = 4 if config.communication == "fp32" else 2
        communication = int(lookups * (8 + columns * (2 * 4 + 2 * travelling)))
        need.weights += weights
        need.state += state
        need.communication += communication
        if self.device.type == "cpu":
            need.on_machine += weights + state + communication
        elif kernel.startswith("fused_uvm"):
            cached = config.cache_load_factor
            cache = int(cached * weights + rows * (4 + 16 * cached)) if kernel == "fused_uvm_caching" else 0
            need.on_machine += weights + state
            need.on_device += communication + cache
        else:
            need.on_device += weights + state + communication

    def check_fits(self, planned: Planned) -> None:
        """Refuse a plan by which a worker would need more memory than it may take."""
        excess: list[tuple[int, str]] = []
        for rank, (need, (hbm, ddr)) in enumerate(zip(planned.needs, self.limits, strict=True)):
            for name, needed, allowed in (("GPU", need.on_device, hbm), ("machine", need.on_machine, ddr)):
                if needed > allowed:
                    parts = f"weights {gib(need.weights)}, optimizer state {gib(need.state)}"
                    parts += f", communication {gib(need.communication)}"
                    text = f"rank {rank} needs {gib(needed)} of {name} memory ({parts}) and may take {gib(allowed)}"
                    excess.append((needed - allowed, text))
        if not excess:
            return
        excess.sort(key=lambda entry: -entry[0])
        more = f"; and {len(excess) - _NAMED} more ranks" if len(excess) > _NAMED else ""
        largest = sorted(self.tables.items(), key=lambda item: -item[1].num_embeddings * item[1].embedding_dim)
        parameters, config = planned.parameters(), self.config
        named = ", ".join(
            f"{name} ({table.num_embeddings:,} x {table.embedding_dim} {config.precision}, "
            f"{parameters[name].sharding_type})"
            for name, table in largest[:_NAMED]
        )
        limit = "tables.hbm_gib" if self.device.type == "cuda" else "tables.ddr_gib"
        raise InputError(
            f"the tables do not fit: {'; '.join(text for _, text in excess[:_NAMED])}{more}. Largest tables: {named}. "
            f"Take more workers, a smaller tables.dimension, tables.precision: fp16 or a higher {limit}"
        )


def _machine_memory() -> int:
    """Bytes of this machine's memory, or of its container's where that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return memory if text == "max" else min(memory, int(text))


def gib(number: float) -> str:
    """Bytes as text."""
    return f"{number / GIB:.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:.2f} MiB"


def describe_plan(planned: Planned) -> str:
    """Plan, memory of each rank and each table's expected share of lookups, as Markdown tables for TensorBoard."""
    parameters, everything = planned.parameters(), sum(planned.lookups.values()) or 1.0
    lines = [
        "| table | sharding | kernel | rows x dimension | workers | share of lookups |",
        "|---|---|---|---|---|---|",
    ]
    for name, lookups in planned.lookups.items():
        plan = parameters[name]
        spec = plan.sharding_spec
        sizes = ", ".join(f"{s.shard_sizes[0]} x {s.shard_sizes[1]}" for s in spec.shards) if spec else "whole"
        ranks, share = ", ".join(map(str, plan.ranks or [])), f"{lookups / everything:.1%}"
        lines.append(f"| {name} | {plan.sharding_type} | {plan.compute_kernel} | {sizes} | {ranks} | {share} |")
    lines += ["", "| rank | weights | optimizer state | communication | on the GPU | on the machine |"]
    lines.append("|---|---|---|---|---|---|")
    for rank, need in enumerate(planned.needs):
        lines.append(f"| {rank} | {' | '.join(map(gib, astuple(need)))} |")
    return "\n".join(lines)
