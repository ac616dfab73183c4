"""The one place that makes a model parallel: plan, place and initialise the tables, wrap the dense part in DDP.

Rows are drawn from generators that depend on (seed, table, block of rows) alone, so a model begins with the same
weights on any number of workers and under any sharding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.overrides import TorchFunctionMode
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.optim import optimizers as torchrec_optimizers
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from embeddings.config import TableConfig
from ingest.errors import InputError

BLOCK_ROWS = 65_536
_PLANNER_KINDS = ["table_wise", "row_wise", "column_wise"]
_OPTIMIZERS: dict[str, Any] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torchrec_optimizers.Adagrad,
    "sgd": torchrec_optimizers.SGD,
    "adam": torchrec_optimizers.Adam,
}


def shard(
    model: nn.Module, tables: list[str], config: TableConfig, device: torch.device, seed: int
) -> DistributedModelParallel:
    """`model` with its tables (named `tables`) sharded over the default process group, the rest under DDP.

    Raises `InputError` where the config names a table that is not there, or an optimizer that the device lacks.
    """
    unknown = sorted(set(config.sharding) - set(tables))
    if unknown:
        raise InputError(f"tables.sharding: no table {unknown[0]!r}; allowed: {', '.join(tables)}")
    if config.optimizer == "adam" and device.type == "cpu":
        raise InputError("tables.optimizer: fbgemm has no fused adam on CPU; allowed: rowwise_adagrad, adagrad, sgd")
    if "data_parallel" in config.sharding.values() and device.type == "cpu":
        raise InputError(
            "tables.sharding: fbgemm's dense kernel, which data_parallel takes, sums a sample's rows on CPU; "
            "allowed: table_wise, row_wise, column_wise"
        )
    sharders = [EmbeddingCollectionSharder()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = _plan(model, sharders, tables, config, device)
        fused = [parameter for name, parameter in _tables_of(model) if not _is_data_parallel(plan, name)]
        if fused:
            apply_optimizer_in_backward(_OPTIMIZERS[config.optimizer], fused, {"lr": config.learning_rate})
        # A static graph's first all-reduce hangs on tensors that DDP finds in the output: it finds none in a dataclass.
        wrapper = DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=False)
        with _Undrawn():
            parallel = DistributedModelParallel(
                model, device=device, plan=plan, sharders=sharders, data_parallel_wrapper=wrapper
            )
        _initialise(parallel, config, seed)
    return parallel


def _tables_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".embeddings." in name and name.endswith(".weight"):
            yield name.split(".embeddings.")[1].removesuffix(".weight"), parameter


def _plan(
    model: nn.Module,
    sharders: list[EmbeddingCollectionSharder],
    tables: list[str],
    config: TableConfig,
    device: torch.device,
) -> ShardingPlan:
    def constraint(table: str) -> ParameterConstraints:
        chosen = config.sharding.get(table)
        kernel = "dense" if chosen == "data_parallel" else "fused"
        return ParameterConstraints(sharding_types=[chosen] if chosen else _PLANNER_KINDS, compute_kernels=[kernel])

    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    planner = EmbeddingShardingPlanner(topology=topology, constraints={table: constraint(table) for table in tables})
    group = dist.group.WORLD
    assert group is not None
    return planner.collective_plan(model, sharders, group)


def _is_data_parallel(plan: ShardingPlan, table: str) -> bool:
    return any(
        getattr(module_plan.get(table), "sharding_type", None) == "data_parallel" for module_plan in plan.plan.values()
    )


def table_states(parallel: nn.Module) -> Iterator[tuple[str, Tensor | ShardedTensor]]:
    """The name and the weight of every table as this worker holds it."""
    for name, value in parallel.state_dict().items():
        if ".embeddings." in name and name.endswith(".weight"):
            yield name.split(".embeddings.")[1].removesuffix(".weight"), value


def rows_in_slices(parallel: nn.Module, table: str, slices: list[tuple[int, int]]) -> Tensor | None:
    """This worker's rows of `table` in place, without a copy, where worker r holds the rows slices[r] and nothing else.

    None, on every worker alike, where the table is spread otherwise. Shape: [rows of the slice, dimension].
    """
    weight = dict(table_states(parallel))[table]
    if not isinstance(weight, ShardedTensor):
        return weight.detach() if slices == [(0, weight.size(0))] else None
    held: list[tuple[int | None, int, int, int]] = []
    for shard in weight.metadata().shards_metadata:
        begin, column = shard.shard_offsets
        rank = shard.placement.rank() if shard.placement is not None else None
        held.append((rank, begin, begin + shard.shard_sizes[0], column))
    if held != [(rank, begin, end, 0) for rank, (begin, end) in enumerate(slices)]:
        return None
    (local,) = weight.local_shards()
    return local.tensor.detach()


class _Undrawn(TorchFunctionMode):
    """Tables are allocated and not drawn by TorchRec, which fills them twice: `_initialise` draws every row."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.uniform_ or func is nn.init.uniform_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _initialise(parallel: nn.Module, config: TableConfig, seed: int) -> None:
    for table, weight in table_states(parallel):
        if isinstance(weight, ShardedTensor):
            for local in weight.local_shards():
                row, column = local.metadata.shard_offsets
                _fill(local.tensor, table, row, column, weight.size(1), config.initial_deviation, seed)
        else:
            _fill(weight.detach(), table, 0, 0, weight.size(1), config.initial_deviation, seed)


def _fill(part: Tensor, table: str, row: int, column: int, dimension: int, deviation: float, seed: int) -> None:
    """Draw `part`, which begins at `row` and `column` of `table`; a block is in memory a second time at most."""
    rows, columns = part.shape
    blocks = range(row // BLOCK_ROWS, -(-(row + rows) // BLOCK_ROWS))

    @torch.no_grad()
    def draw(block: int) -> None:
        digest = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        begin, end = max(row, block * BLOCK_ROWS), min(row + rows, (block + 1) * BLOCK_ROWS)
        target, first = part[begin - row : end - row], begin - block * BLOCK_ROWS
        whole = target.shape == (BLOCK_ROWS, dimension) and target.is_contiguous()
        if whole and target.is_cpu and target.dtype == torch.float32:
            target.normal_(0.0, deviation, generator=generator)
            return
        values = torch.empty(BLOCK_ROWS, dimension).normal_(0.0, deviation, generator=generator)
        target.copy_(values[first : first + len(target), column : column + columns])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(draw, blocks))


def describe_plan(parallel: DistributedModelParallel) -> str:
    """The sharding plan by table, as a Markdown table for TensorBoard."""
    lines = ["| table | sharding | kernel | rows x dimension | workers |", "|---|---|---|---|---|"]
    for module_plan in parallel.plan.plan.values():
        for table, parameter in module_plan.items():
            spec = parameter.sharding_spec
            shards = spec.shards if spec is not None else []
            sizes = ", ".join(f"{s.shard_sizes[0]} x {s.shard_sizes[1]}" for s in shards) or "whole"
            ranks = ", ".join(str(rank) for rank in parameter.ranks or [])
            lines.append(f"| {table} | {parameter.sharding_type} | {parameter.compute_kernel} | {sizes} | {ranks} |")
    return "\n".join(lines)
