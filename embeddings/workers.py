"""The group of worker processes that train together, and the few exchanges between them.

One process is a group of one: the same code runs with and without Ray.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ingest.errors import InputError

B = TypeVar("B")

FIRST = 4
"""Batches that are read by the time that the second step, the last one that may be compiled in, is taken."""
SLOW = 600.0
"""Seconds for what takes minutes at times: one request of a storage, which is asked again, a first batch compiled."""


class LeavingError(Exception):
    """All workers leave what they do, because one of them was asked to; the message says which, and why."""


@dataclass(frozen=True)
class Worker:
    """This process among the `workers` that train together."""

    rank: int = 0
    workers: int = 1
    share: float = 1.0
    """The part of the most workers that there can be that `workers` are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, Any]], None] = field(default=lambda metrics: None)
    """Called by all workers at the end of every epoch."""
    bar: Callable[..., Any] | None = None
    """Makes a progress bar, as `tqdm.tqdm` does; only the first worker has one."""
    say: Callable[[str], None] = field(default=functools.partial(print, flush=True))
    """Shows a person a line, from whichever worker."""
    watch: Callable[[str, Mapping[str, float]], None] = field(default=lambda model, figures: None)
    """Takes figures of this worker for `model` by name, for those who watch the run."""
    at: Callable[[str, float | None], None] = field(default=lambda doing, seconds: None)
    """Takes what this worker now does, and how many seconds more than a step it may take for it; None where it may take
    as long as it moves: computes, or is answered by a storage."""
    asked: Callable[[bool], str] = field(default=lambda goes_on: "")
    """Why all workers are to leave what they do, empty while they stay; takes whether they can go on there later."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @functools.cached_property
    def host_group(self) -> dist.ProcessGroup | None:
        """The group that exchanges numbers in the machine's memory, which all workers make at the same time; None for
        the default one, where that is not a GPU's."""
        return dist.new_group(backend="gloo") if self.device.type == "cuda" else None

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Any]:
        """A progress bar over `total` users while the block runs; None without users, and but for the first worker."""
        if self.bar is None or not self.first or not total:
            yield None
            return
        bar = self.bar(total=total, desc=description, unit="users")
        try:
            yield bar
        finally:
            bar.close()


@contextmanager
def single_process(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, for a run without Ray."""
    if dist.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def total(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `value` over all workers, in `group` where it is not where the default one's exchanges are."""
    summed = value.clone()
    dist.all_reduce(summed, group=group)
    return summed


def gather_objects(value: Any) -> list[Any]:
    """Every worker's `value`, by rank, on every worker."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: Exception | None) -> None:
    """Raise on every worker what has failed on any, each with its `error` or None: so no other is left waiting for it.

    What the user has to mend is raised everywhere as it is; else a worker raises its own error, or the first one's.
    """
    told = error
    if error is not None and not isinstance(error, InputError):
        told = RuntimeError(f"worker {dist.get_rank()}: {type(error).__name__}: {error}")
    found = [each for each in gather_objects(told) if each is not None]
    refused = next((each for each in found if isinstance(each, InputError)), None)
    if refused is not None:
        raise refused
    if found:
        raise error or found[0]


def gather_rows(rows_NX: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, list[int]]:
    """All workers' rows, those of rank 0 first, and how many each has: [N, ...] -> [sum of N over the workers, ...].

    `sizes`: how many each has, where an earlier call has returned them.
    """
    workers = dist.get_world_size()
    if workers == 1:
        return rows_NX, [len(rows_NX)]
    if sizes is None:
        own = torch.tensor([len(rows_NX)], device=rows_NX.device)
        counts = [torch.zeros_like(own) for _ in range(workers)]
        dist.all_gather(counts, own)
        sizes = [int(count) for count in counts]
    padded = rows_NX.new_zeros((max(sizes), *rows_NX.shape[1:]))
    padded[: len(rows_NX)] = rows_NX
    parts = [torch.empty_like(padded) for _ in range(workers)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes


def own_rows(rows: int, rank: int, workers: int) -> tuple[int, int]:
    """The first row of a worker's slice of a table and the first after it, as TorchRec shards row-wise.

    All slices are as large as the first but the last that has rows; those after it have none.
    """
    most = -(-rows // workers)
    return min(rank * most, rows), min((rank + 1) * most, rows)


def lockstep_batches(
    batches: Iterator[B],
    empty: B,
    worker: Worker,
    counts: Callable[[B], Tensor] = lambda _: torch.zeros(0),
    doing: str = "",
    first: int = 0,
    goes_on: bool = False,
) -> Iterator[tuple[B, list[float]]]:
    """This worker's batches, then `empty` until every worker is through; with each the sums of `counts` over all.

    So workers with uneven data take the same number of steps. The next batch is read, and its `counts(batch)`, [n] on
    the CPU, are on their way, while one is used: what they say of anything else is a step old. `doing` and the number
    of the batch, from `first` on, tell those who watch where this worker is.

    Raises `LeavingError` on all workers, before a batch is given, where any was asked to leave. `goes_on`: whether the
    caller can go on at that batch another time.
    """

    def read(number: int) -> tuple[B | None, str, Tensor, Any]:
        worker.at(f"{doing} {number} is read", None)
        batch, why = next(batches, None), worker.asked(goes_on)
        own = counts(empty if batch is None else batch).double()
        sums = torch.cat([own.new_tensor([batch is not None, bool(why)]), own])
        worker.at(f"{doing} {number}", SLOW if number <= first + FIRST else 0.0)
        return batch, why, sums, dist.all_reduce(sums, group=worker.host_group, async_op=True)

    batch, why, summed, summing = read(first + 1)
    for number in itertools.count(first + 2):
        summing.wait()
        active, asked, *sums = summed.tolist()
        if asked:
            raise LeavingError(next(filter(None, gather_objects(why))))
        if not active:
            break
        now = empty if batch is None else batch
        batch, why, summed, summing = read(number)
        yield now, sums
    worker.at(f"{doing} {number}: all are through", None)
