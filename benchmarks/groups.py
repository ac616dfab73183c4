"""Training groups of gloo processes that wait for what to measure, so that several groups can take turns."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from embeddings.workers import Worker

Ask = Callable[..., list[Future[Any]]]
"""Has every worker make its call with some arguments."""
_made: dict[str, Callable[..., Any]] = {}
"""In a group's process: what it holds."""


@contextmanager
def group(workers: int, make: Callable[..., Callable[..., Any]], **arguments: Any) -> Iterator[Ask]:
    """`workers` processes of one thread, each of which holds what `make(worker, **arguments)` gives: a call."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in range(workers)]
        results([pool.submit(_start, rank, workers, folder, make, arguments) for rank, pool in enumerate(pools)])
        yield lambda **arguments: [pool.submit(_call, arguments) for pool in pools]


def results(futures: list[Future[Any]]) -> list[Any]:
    """By rank; the first error, where a worker has one: the others wait for it in vain."""
    for future in as_completed(futures):
        future.result()
    return [future.result() for future in futures]


def _start(rank: int, workers: int, folder: str, make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    os.environ |= {name: str(value) for name, value in environment.items()}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers, timeout=timedelta(minutes=2))
    _made["call"] = make(Worker(rank, workers), **arguments)


def _call(arguments: dict[str, Any]) -> Any:
    return _made["call"](**arguments)


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far, pages that it shares included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
