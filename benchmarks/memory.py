"""The most memory that a process and all that it starts have together, each page that they share counted once (PSS)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

MOST_SECONDS_BETWEEN_LOOKS = 3.0
"""A tenth of what has passed until then: a look takes time of the processes that it looks at."""


@dataclass(frozen=True)
class Watched:
    """What a command took, and its exit status."""

    status: int
    seconds: float
    gib: float


def watch(command: list[str]) -> Watched:
    """Run `command` to its end; what it prints goes to stderr."""
    began, ended = time.perf_counter(), threading.Event()
    sizes = [0]
    process = subprocess.Popen(command, stdout=sys.stderr)

    def look() -> None:
        while not ended.wait(min(MOST_SECONDS_BETWEEN_LOOKS, 0.02 + (time.perf_counter() - began) / 10)):
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(process.pid)
                sizes.append(sum(map(_proportional, (first, *first.children(recursive=True)))))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    status = process.wait()
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    return Watched(status, seconds, max(sizes) / 2**30)


def _proportional(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return int(process.memory_full_info().pss)
    return 0
