"""Training groups of gloo processes that wait for what to measure, so that several groups can take turns."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from embeddings.workers import Worker

_made: dict[str, Callable[..., Any]] = {}
"""In a group's process: what it was made to hold."""


class Group:
    """`workers` processes of one thread, each of which holds what `make(worker, **arguments)` gives: a call."""

    def __init__(self, workers: int, make: Callable[..., Callable[..., Any]], **arguments: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.pools = [ProcessPoolExecutor(1, context) for _ in range(workers)]
        results(
            [
                pool.submit(_start, rank, workers, self.folder.name, make, arguments)
                for rank, pool in enumerate(self.pools)
            ]
        )

    def ask(self, **arguments: Any) -> list[Future[Any]]:
        """Have every worker make its call."""
        return [pool.submit(_call, arguments) for pool in self.pools]

    def call(self, **arguments: Any) -> list[Any]:
        """What every worker's call gives, by rank."""
        return results(self.ask(**arguments))

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pool in self.pools:
            pool.shutdown()
        self.folder.cleanup()


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
