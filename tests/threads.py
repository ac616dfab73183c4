"""Workers as threads of this process, for exchanges that need more of them than there are processors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

from embeddings.workers import Worker


def on_threads(workers: int, function: Callable[[Worker], Any]) -> list[Any]:
    """What `function` gives on each of `workers` threads, which have a process group of their own."""
    results: list[Any] = [None] * workers
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    multi_threaded_pg._install_threaded_pg()
    store = dist.HashStore()

    def work(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=workers, store=store)
        try:
            results[rank] = function(Worker(rank, workers))
        except BaseException as error:
            results[rank] = error
            multi_threaded_pg.ProcessLocalGroup.exception_handle(error)
        finally:
            dist.destroy_process_group()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
    if errors := [result for result in results if isinstance(result, BaseException)]:
        raise min(errors, key=lambda error: isinstance(error, SystemExit))  # the others were ended for the first
    return results
