"""Bytes that a training step sends through each collective: as formulas, and counted where they are called.

    W  workers     T  tokens     Q, A  targets of this and of all workers     N  distinct negatives     D  dimension
    L  different rows that this worker looks up: of every feature's table the values of its tokens, of items those of
       tokens, targets and negatives, or of tokens and its slice of the catalogue with the full softmax

    all-to-all   ids            8 L, once for each shard of columns, and some numbers for each worker
                 rows           f D L    f: bytes of a value on its way, 4 or 2
                 gradients      b D L    b: the same on the way back
    all-gather   in-batch       8 W (1 + most Q of a worker)
                 full softmax   8 W + W (4 D + 12) (most Q of a worker)
                 bookkeeping    logged steps 8 W x 5
    all-reduce   gradients      4 x (the dense part's parameters + V D of each data_parallel table)
                 full softmax   (4 D + 12) A
                 bookkeeping    8 x (11 + intents): counts before a step, losses after it; logged steps 8 x tables more

Bytes are those of the buffer that this worker gives (ids, gradients, all-reduce) or gets (rows, all-gather), its own
part included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from embeddings.table_config import ITEM, table_of
from embeddings.workers import gather_rows
from ingest.data.batch import Batch, Lists
from trainer.step import Step

INDEX, VALUE, EXACT = 8, 4, 8
"""Bytes of an id, of a float32 and of a float64."""
FIGURES = 5
"""Of a worker at a logged point: targets, its waiting twice, its own time, its memory. A GPU has two more."""
IDS, ROWS, GRADIENTS = "all_to_all ids", "all_to_all rows", "all_to_all gradients"
GATHERED = "all_gather"
DENSE, SOFTMAX, BOOKKEEPING = "all_reduce gradients", "all_reduce softmax", "all_reduce bookkeeping"
NAMES = (IDS, ROWS, GRADIENTS, GATHERED, DENSE, SOFTMAX, BOOKKEEPING)
ROW_WISE, COLUMN_WISE, DATA_PARALLEL = "row_wise", "column_wise", "data_parallel"


@dataclass(frozen=True)
class TableLoad:
    """A table in a step of one worker."""

    rows: int
    sharding: str
    lookups: float
    columns: int = 1
    """Shards that its columns are cut into."""


@dataclass(frozen=True)
class Load:
    """What decides a step's bytes."""

    workers: int
    dimension: int
    tables: dict[str, TableLoad]
    dense: int
    """Parameters outside the tables."""
    intents: int
    most_targets: int = 0
    """Of a worker."""
    all_targets: int = 0
    loss: str = "sampled"
    """`sampled`, `in_batch` (or mixed) or `full`."""
    forward_bytes: int = VALUE
    """Of a value of a row on its way."""
    backward_bytes: int = VALUE
    logged_tables: int = 0
    """Tables whose lookups are summed up for TensorBoard after this step; 0 where it is not logged."""


def bytes_per_step(load: Load) -> dict[str, float]:
    """Bytes of this worker's buffers by collective: see the head of this file."""
    found = dict.fromkeys(NAMES, 0.0)
    kinds = {table.sharding for table in load.tables.values()} - {DATA_PARALLEL}
    found[IDS] = 3.0 * INDEX * load.workers * len(kinds)
    found[DENSE] = float(VALUE * load.dense)
    for table in load.tables.values():
        if table.sharding == DATA_PARALLEL:
            found[DENSE] += VALUE * table.rows * load.dimension
            continue
        lengths = load.workers if table.sharding == ROW_WISE else table.columns
        found[IDS] += INDEX * (table.lookups * table.columns + lengths)
        found[ROWS] += load.forward_bytes * load.dimension * table.lookups
        found[GRADIENTS] += load.backward_bytes * load.dimension * table.lookups
    if load.loss == "in_batch":
        found[GATHERED] = load.workers * INDEX * (1.0 + load.most_targets)
    if load.loss == "full":
        target = VALUE * load.dimension + INDEX + VALUE
        found[GATHERED] = load.workers * (INDEX + float(target) * load.most_targets)
        found[SOFTMAX] = float(VALUE * (load.dimension + 3) * load.all_targets)
    if load.logged_tables:
        found[GATHERED] += load.workers * EXACT * FIGURES
    found[BOOKKEEPING] = float(EXACT * (10 + 1 + load.intents + load.logged_tables))
    return found


def load_of(step: Step, batch: Batch, number: int) -> Load:
    """The load of step `number` on `batch`; all workers have to call it at the same time."""
    loss, tables, manifest = step.config.loss, step.config.tables, step.manifest
    all_targets, sizes = gather_rows(batch.target_Q)
    if loss.kind == "full":
        candidates = step.slice_v
    else:
        candidates = torch.cat([batch.target_Q, step.sampler(number, all_targets).item_N])
    batch = step.with_unknowns(batch, number)
    sizes_of = {ITEM: manifest.items} | {feature.name: feature.size for feature in manifest.features}
    plan = step.planned.parameters()
    loads = {}
    for name in step.recommender.tables.names:
        value = batch.item_T if name == ITEM else batch.features[name]
        values = value.values if isinstance(value, Lists) else value
        if name == ITEM:
            values = torch.cat([values, candidates])
        kind, spec = str(plan[name].sharding_type), plan[name].sharding_spec
        columns = len({shard.shard_offsets[1] for shard in spec.shards}) if spec is not None else 1
        loads[name] = TableLoad(sizes_of[name], kind, len(values.unique()), columns)
    half = 4 if getattr(tables, "communication", "fp32") == "fp32" else 2
    return Load(
        workers=step.worker.workers,
        dimension=tables.dimension,
        tables=loads,
        dense=sum(parameter.numel() for name, parameter in step.dense.items() if table_of(name) is None),
        intents=len(batch.labels),
        most_targets=max(sizes),
        all_targets=sum(sizes),
        loss="full" if loss.kind == "full" else "in_batch" if step.sampler.needs_targets else "sampled",
        forward_bytes=half,
        backward_bytes=half,
        logged_tables=0 if (number + 1) % step.config.log_steps else len(loads),
    )


@dataclass
class Counted:
    """Bytes by collective."""

    buffers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    """As in `bytes_per_step`."""
    sent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    """To other workers, by all-to-all alone."""


class CollectiveCounter(TorchDispatchMode):
    """Adds up, in `counted`, what goes through the process group inside; DDP's own calls are among them."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._count(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _count(self, operation: str, args: Any) -> None:
        backward = torch._C._current_graph_task_id() != -1
        if operation == "alltoall_base_":
            output, given, _, _, splits = args[:5]
            name = GRADIENTS if backward else ROWS if given.is_floating_point() else IDS
            self._add(name, output if name == ROWS else given)
            self.counted.sent[name] += _bytes_of(given) - _own_part(given, list(splits))
        elif operation == "allgather_":
            outputs, _ = args[:2]
            self._add(GATHERED, *outputs[0])
        elif operation == "allreduce_":
            exact = args[0][0].dtype == torch.float64
            self._add(DENSE if backward else BOOKKEEPING if exact else SOFTMAX, *args[0])
        else:
            self._add(f"c10d {operation}")

    def _add(self, name: str, *tensors: Tensor) -> None:
        buffers = self.counted.buffers
        buffers[name] = buffers.get(name, 0.0) + sum(_bytes_of(tensor) for tensor in tensors)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _own_part(given: Tensor, splits: list[int]) -> float:
    """Bytes of an all-to-all's input that stay with this worker; without splits all parts are equal."""
    if not splits:
        return _bytes_of(given) / dist.get_world_size()
    return splits[dist.get_rank()] * given[:1].numel() * given.element_size()


@dataclass(frozen=True)
class Taken:
    """A step of the training loop: its batch, its number, and what was counted until the next one began."""

    batch: Batch
    number: int
    counted: Counted


class _Enough(Exception):  # noqa: N818
    pass


@contextmanager
def counted_steps(steps: int, skip: int = 2) -> Iterator[list[Taken]]:
    """The steps that a training inside takes after `skip`, which it ends with: DDP orders its buckets in the first two.

    A step is counted from its beginning to the next one's, so the loop's own exchanges are in it. It is not prepared
    before, so that its ids are, too.
    """
    taken: list[Taken] = []
    original, ahead = Step.train, Step.ahead
    counter = CollectiveCounter()

    def train(self: Step, batch: Batch, number: int, *step: Any) -> Any:
        if len(taken) == skip + steps:
            raise _Enough
        counter.counted = Counted()
        taken.append(Taken(batch, number, counter.counted))
        return original(self, batch, number, *step)

    Step.train = train  # type: ignore[method-assign]
    Step.ahead = False  # type: ignore[assignment, method-assign]
    try:
        with counter:
            yield taken
        del taken[-1:]
    except _Enough:
        pass
    finally:
        Step.train, Step.ahead = original, ahead  # type: ignore[method-assign]
        del taken[:skip]
