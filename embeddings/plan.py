"""Which worker holds which rows, and in what memory: TorchRec's planner under the config's wishes, checked before
anything is allocated.

The verdict is ours and not the planner's, so that a plan that the config forces is held to the same account:

    weights           rows x columns x bytes of the precision
    optimizer state   rows x 4 bytes for the row-wise Adagrad, and what the others take
    communication     a step's ids (8 bytes), and its rows four times: looked up and received, forward and backward
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import CacheParams, ParameterSharding, ShardingPlan

from embeddings.table_config import PREFIX, TableConfig
from ingest.errors import InputError

GIB = 2**30
_PLANNER_KINDS = ["table_wise", "row_wise", "column_wise"]
_UNLIMITED = 2**60
_ALLOWED_SHARE = 0.85
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
    limits: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(limits, _limits(config, device))
    found: list[ShardingPlan | None] = [None]
    if dist.get_rank() == 0:
        found = [_planned(model, sharders, tables, config, device, lookups, limits)]
    if len(limits) > 1:
        dist.broadcast_object_list(found, 0)
    (plan,) = found
    assert plan is not None
    parameters = _parameters(plan)
    needs = _needs(parameters, tables, config, device, lookups, len(limits))
    _check_fits(needs, limits, parameters, tables, config, device)
    return Planned(plan, needs, lookups)


def _limits(config: TableConfig, device: torch.device) -> tuple[int, int]:
    """Bytes of the GPU's and of the machine's memory that this worker may take."""
    hbm = 0
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        hbm = int(config.hbm_gib * GIB if config.hbm_gib else _ALLOWED_SHARE * total)
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ddr = config.ddr_gib * GIB if config.ddr_gib else _ALLOWED_SHARE * _machine_memory() / workers
    return hbm, int(ddr)


def _machine_memory() -> int:
    """Bytes of this machine's memory, or of its container's where that has less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return memory if text == "max" else min(memory, int(text))


def _planned(
    model: nn.Module,
    sharders: list[EmbeddingCollectionSharder],
    tables: list[EmbeddingConfig],
    config: TableConfig,
    device: torch.device,
    lookups: Mapping[str, float],
    limits: list[tuple[int, int]],
) -> ShardingPlan:
    """The planner's choice within the limits; without them where it finds none, to tell what that would need."""
    constraints = {table.name: _constraint(table, config, lookups) for table in tables}
    hbm, ddr = (min(values) for values in zip(*limits, strict=True))
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def planner(hbm: int, ddr: int) -> EmbeddingShardingPlanner:
        topology = Topology(
            len(limits), device.type, hbm_cap=hbm, ddr_cap=ddr, local_world_size=workers, created_by_factory=True
        )
        return EmbeddingShardingPlanner(topology=topology, batch_size=1, constraints=constraints, debug=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return planner(hbm, ddr).plan(model, sharders)
        except PlannerError:
            return planner(_UNLIMITED, _UNLIMITED).plan(model, sharders)


def _constraint(table: EmbeddingConfig, config: TableConfig, lookups: Mapping[str, float]) -> ParameterConstraints:
    (name,) = table.feature_names
    chosen = config.sharding.get(name)
    kernel = "dense" if chosen == "data_parallel" else config.kernel.get(name, "fused")
    return ParameterConstraints(
        sharding_types=[chosen] if chosen else _PLANNER_KINDS[:2] if name in config.zch else _PLANNER_KINDS,
        compute_kernels=[kernel],
        pooling_factors=[max(lookups.get(name, 1.0), 1.0)],
        cache_params=CacheParams(load_factor=config.cache_load_factor) if kernel == "fused_uvm_caching" else None,
        min_partition=min(table.embedding_dim, 128),
    )


def _parameters(plan: ShardingPlan) -> dict[str, ParameterSharding]:
    return {name.removeprefix(PREFIX): parameter for part in plan.plan.values() for name, parameter in part.items()}


def _needs(
    parameters: Mapping[str, ParameterSharding],
    tables: list[EmbeddingConfig],
    config: TableConfig,
    device: torch.device,
    lookups: Mapping[str, float],
    workers: int,
) -> list[Need]:
    needs = [Need() for _ in range(workers)]
    for table in tables:
        (name,) = table.feature_names
        parameter = parameters[name]
        for rank, rows, columns in shards_of(parameter, table, workers):
            every = parameter.sharding_type in ("row_wise", "data_parallel")
            lookups_here = lookups.get(name, 0.0) * (1 if every else workers)
            _add(needs[rank], parameter.compute_kernel, rows, columns, lookups_here, config, device)
    return needs


def shards_of(parameter: ParameterSharding, table: EmbeddingConfig, workers: int) -> list[tuple[int, int, int]]:
    """Rank, rows and columns of each shard; a data parallel table is whole on every rank."""
    if parameter.sharding_spec is None:
        return [(rank, table.num_embeddings, table.embedding_dim) for rank in range(workers)]
    shards = parameter.sharding_spec.shards
    return [(shard.placement.rank(), *shard.shard_sizes) for shard in shards]


def _add(
    need: Need, kernel: str, rows: int, columns: int, lookups: float, config: TableConfig, device: torch.device
) -> None:
    weights = rows * columns * (2 if config.precision == "fp16" else 4)
    state = 12 * rows * columns if kernel == "dense" else rows * _state_bytes(config, columns)
    travelling = 4 if config.communication == "fp32" else 2
    communication = int(lookups * (8 + columns * (2 * 4 + 2 * travelling)))
    need.weights += weights
    need.state += state
    need.communication += communication
    if device.type == "cpu":
        need.on_machine += weights + state + communication
    elif kernel == "fused_uvm":
        need.on_machine += weights + state
        need.on_device += communication
    elif kernel == "fused_uvm_caching":
        need.on_machine += weights + state
        cached = config.cache_load_factor
        need.on_device += communication + int(cached * weights + rows * (4 + 16 * cached))
    else:
        need.on_device += weights + state + communication


def _state_bytes(config: TableConfig, columns: int) -> int:
    """The fused optimizer's state for one row of a shard."""
    return {
        "sgd": 0,
        "rowwise_adagrad": 4,
        "adagrad": 4 * columns,
        "rowwise_adam": 4 * columns + 4,
        "adam": 8 * columns,
    }[config.optimizer]


def _check_fits(
    needs: list[Need],
    limits: list[tuple[int, int]],
    parameters: Mapping[str, ParameterSharding],
    tables: list[EmbeddingConfig],
    config: TableConfig,
    device: torch.device,
) -> None:
    excess: list[tuple[int, str]] = []
    for rank, (need, (hbm, ddr)) in enumerate(zip(needs, limits, strict=True)):
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
    largest = sorted(tables, key=lambda table: -table.num_embeddings * table.embedding_dim)[:_NAMED]
    named = ", ".join(
        f"{table.feature_names[0]} ({table.num_embeddings:,} x {table.embedding_dim} {config.precision}, "
        f"{parameters[table.feature_names[0]].sharding_type})"
        for table in largest
    )
    limit = "tables.hbm_gib" if device.type == "cuda" else "tables.ddr_gib"
    raise InputError(
        f"the tables do not fit: {'; '.join(text for _, text in excess[:_NAMED])}{more}. Largest tables: {named}. "
        f"Take more workers, a smaller tables.dimension, tables.precision: fp16 or a higher {limit}"
    )


def gib(number: float) -> str:
    """Bytes as text."""
    return f"{number / GIB:.2f} GiB" if number >= GIB / 100 else f"{number / 2**20:.2f} MiB"


def describe_plan(planned: Planned, tables: list[EmbeddingConfig]) -> str:
    """Plan, memory of each rank and each table's expected share of lookups, as Markdown tables for TensorBoard."""
    parameters, everything = planned.parameters(), sum(planned.lookups.values()) or 1.0
    lines = [
        "| table | sharding | kernel | rows x dimension | workers | share of lookups |",
        "|---|---|---|---|---|---|",
    ]
    for table in tables:
        (name,) = table.feature_names
        parameter = parameters[name]
        spec = parameter.sharding_spec
        sizes = ", ".join(f"{s.shard_sizes[0]} x {s.shard_sizes[1]}" for s in spec.shards) if spec else "whole"
        ranks = ", ".join(str(rank) for rank in parameter.ranks or [])
        share = f"{planned.lookups.get(name, 0.0) / everything:.1%}"
        lines.append(
            f"| {name} | {parameter.sharding_type} | {parameter.compute_kernel} | {sizes} | {ranks} | {share} |"
        )
    lines += ["", "| rank | weights | optimizer state | communication | on the GPU | on the machine |"]
    lines.append("|---|---|---|---|---|---|")
    for rank, need in enumerate(planned.needs):
        numbers = (need.weights, need.state, need.communication, need.on_device, need.on_machine)
        lines.append(f"| {rank} | {' | '.join(map(gib, numbers))} |")
    return "\n".join(lines)
