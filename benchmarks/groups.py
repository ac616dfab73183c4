"""Training groups of gloo processes that wait for what to measure, so that several groups can take turns."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from embeddings.workers import Worker


class Group:
    """`workers` processes of `threads` threads, each of which holds what `make(worker, **arguments)` gives: a call."""

    def __init__(self, workers: int, threads: int, make: Callable[..., Callable[..., Any]], **arguments: Any) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.processes, self.connections = [], []
        for rank in range(workers):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, workers, threads, self.folder.name, make, arguments, there), daemon=True
            )
            process.start()
            there.close()
            self.processes.append(process)
            self.connections.append(here)
        self.result()

    def ask(self, **arguments: Any) -> None:
        """Have every worker make its call; `result` has what it gives."""
        for connection in self.connections:
            connection.send(arguments)

    def result(self) -> list[Any]:
        """By rank."""
        found = [connection.recv() for connection in self.connections]
        for value in found:
            if isinstance(value, _Failure):
                raise RuntimeError(value.text)
        return found

    def call(self, **arguments: Any) -> list[Any]:
        self.ask(**arguments)
        return self.result()

    def close(self) -> None:
        for connection in self.connections:
            connection.send(None)
        for process in self.processes:
            process.join(60)
            process.kill()
        self.folder.cleanup()


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _serve(
    rank: int,
    workers: int,
    threads: int,
    folder: str,
    make: Callable[..., Callable[..., Any]],
    arguments: dict[str, Any],
    connection: Connection,
) -> None:
    torch.set_num_threads(threads)
    os.environ |= {
        name: str(value)
        for name, value in (
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", workers),
            ("LOCAL_WORLD_SIZE", workers),
        )
    }
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers, timeout=timedelta(minutes=10)
        )
        call = make(Worker(rank, workers), **arguments)
        connection.send(None)
        while (asked := connection.recv()) is not None:
            connection.send(call(**asked))
        dist.destroy_process_group()
    except Exception:
        connection.send(_Failure(traceback.format_exc()))


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far, pages that it shares included."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
