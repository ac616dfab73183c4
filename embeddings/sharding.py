"""The one place that makes a model parallel: plan, place and initialise the tables, wrap the dense part in DDP.

Rows are drawn from generators that depend on (seed, table, block of rows) alone, so a model begins with the same
weights on any number of workers and under any sharding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.overrides import TorchFunctionMode
from torchrec import EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim import optimizers as torchrec_optimizers
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from embeddings.plan import Planned, make_plan
from embeddings.table_config import TableConfig, table_of
from embeddings.workers import own_rows
from ingest.errors import InputError

BLOCK_ROWS = 65_536
_GRADIENT_SCALE = 1024.0
_OPTIMIZERS: dict[str, Any] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "rowwise_adam": torchrec_optimizers.PartialRowWiseAdam,
    "adagrad": torchrec_optimizers.Adagrad,
    "sgd": torchrec_optimizers.SGD,
    "adam": torchrec_optimizers.Adam,
}


def shard(
    model: nn.Module,
    tables: list[EmbeddingConfig],
    config: TableConfig,
    device: torch.device,
    seed: int,
    lookups: Mapping[str, float],
) -> tuple[DistributedModelParallel, Planned]:
    """`model` with its `tables` sharded over the default process group and the rest under DDP, and by which plan.

    `lookups`: expected rows of each table that a worker looks up in a step. Raises `InputError` where the config names
    a table that is not there, what the device lacks, or tables that do not fit into memory.
    """
    _check(tables, config, device)
    codecs = get_qcomm_codecs_registry(_communication(config, device), device=device)
    sharders = [EmbeddingCollectionSharder(qcomm_codecs_registry=codecs)]
    planned = make_plan(model, sharders, tables, config, device, lookups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, parameter in model.named_parameters():
            table = table_of(name)
            if table is not None and not planned.is_data_parallel(table):
                rate = config.learning_rates.get(table, config.learning_rate)
                apply_optimizer_in_backward(_OPTIMIZERS[config.optimizer], [parameter], {"lr": rate})
        # A static graph's first all-reduce hangs on tensors that DDP finds in the output: it finds none in a dataclass.
        wrapper = DefaultDataParallelWrapper(static_graph=False, find_unused_parameters=False)
        with _Undrawn():
            parallel = DistributedModelParallel(
                model, device=device, plan=planned.plan, sharders=sharders, data_parallel_wrapper=wrapper
            )
        _initialise(parallel, config, seed)
    return parallel, planned


def _check(tables: list[EmbeddingConfig], config: TableConfig, device: torch.device) -> None:
    names = [table.feature_names[0] for table in tables]
    for key in ("sharding", "kernel", "learning_rates", "zch"):
        unknown = sorted(set(getattr(config, key)) - set(names))
        if unknown:
            raise InputError(f"tables.{key}: no table {unknown[0]!r}; allowed: {', '.join(names)}")
    if device.type != "cpu":
        return
    if config.optimizer in ("adam", "rowwise_adam"):
        raise InputError(
            f"tables.optimizer: fbgemm has no fused {config.optimizer} on CPU; allowed: rowwise_adagrad, adagrad, sgd"
        )
    if "data_parallel" in config.sharding.values():
        raise InputError(
            "tables.sharding: fbgemm's dense kernel, which data_parallel takes, sums a sample's rows on CPU; "
            "allowed: table_wise, row_wise, column_wise"
        )
    if uvm := [kernel for kernel in config.kernel.values() if kernel != "fused"]:
        raise InputError(f"tables.kernel: {uvm[0]} keeps rows for a GPU in the machine's memory; on CPU allowed: fused")
    if config.communication == "bf16":
        raise InputError("tables.communication: gloo carries no bf16 between CPUs; allowed: fp32, fp16")


def _communication(config: TableConfig, device: torch.device) -> QCommsConfig:
    """Gradients are small, so where they travel as fp16 they are scaled, and on a GPU they travel as bf16 instead."""
    precision = CommType(config.communication)
    if precision == CommType.FP16 and device.type == "cuda":
        return QCommsConfig(forward_precision=precision, backward_precision=CommType.BF16)
    scale = _GRADIENT_SCALE if precision == CommType.FP16 else None
    return QCommsConfig(forward_precision=precision, backward_precision=precision, backward_loss_scale=scale)


def table_states(parallel: nn.Module) -> Iterator[tuple[str, Tensor | ShardedTensor]]:
    """The name and the weight of every table as this worker holds it."""
    for name, value in parallel.state_dict().items():
        if (table := table_of(name)) is not None:
            yield table, value


def rows_in_place(parallel: nn.Module, table: str, workers: int) -> Tensor | None:
    """This worker's rows of `table` without a copy, where every worker holds its `own_rows` and nothing else.

    None, on every worker alike, where the table is sharded otherwise. Shape: [rows of the slice, dimension].
    """
    weight = dict(table_states(parallel))[table]
    if not isinstance(weight, ShardedTensor):
        return weight.detach() if workers == 1 else None
    slices = [own_rows(weight.size(0), rank, workers) for rank in range(workers)]
    held: list[tuple[int | None, int, int, int]] = []
    for shard in weight.metadata().shards_metadata:
        begin, column = shard.shard_offsets
        rank = shard.placement.rank() if shard.placement is not None else None
        held.append((rank, begin, begin + shard.shard_sizes[0], column))
    if held != [(rank, begin, end, 0) for rank, (begin, end) in enumerate(slices)]:
        return None
    (local,) = weight.local_shards()
    return local.tensor.detach()


def kernels(optimizer: Any) -> list[Any]:
    """fbgemm's modules that the fused `optimizer` of a sharded model is for."""
    if hasattr(optimizer, "optimizers"):
        return [kernel for _, part in optimizer.optimizers for kernel in kernels(part)]
    return [optimizer._emb_module]


@torch.no_grad()
def reset_rows(parallel: DistributedModelParallel, table: str, row_N: Tensor, values_ND: Tensor) -> None:
    """Put `values_ND` into rows of a row-wise or table-wise `table` and clear their optimizer state, where they are."""
    weight = dict(table_states(parallel))[table]
    states = [
        value
        for name, state in parallel.fused_optimizer.state_dict()["state"].items()
        if table_of(name) == table
        for value in state.values()
    ]
    for tensor, values in [(weight, values_ND), *((state, None) for state in states)]:
        if not isinstance(tensor, ShardedTensor):
            continue
        for local in tensor.local_shards():
            begin, rows = local.metadata.shard_offsets[0], local.metadata.shard_sizes[0]
            own_N = (row_N >= begin) & (row_N < begin + rows)
            local.tensor[row_N[own_N] - begin] = 0 if values is None else values.to(local.tensor)[own_N]


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
