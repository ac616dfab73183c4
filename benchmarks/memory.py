"""The most memory that a process and all that it starts have together, each page that they share counted once (PSS)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil

SECONDS_BETWEEN_LOOKS = 0.5


class PeakMemory(threading.Thread):
    """Watches the process `pid`; `gib` is the most so far, `processes` how many there were then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.gib, self.processes, self.stopped = pid, 0.0, 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(SECONDS_BETWEEN_LOOKS):
            try:
                first = psutil.Process(self.pid)
                everyone = [first, *first.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            total = sum(map(_proportional, everyone))
            if total / 2**30 > self.gib:
                self.gib, self.processes = total / 2**30, len(everyone)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


@dataclass(frozen=True)
class Watched:
    """What a command took, and its exit status."""

    status: int
    seconds: float
    gib: float
    processes: int
    printed: str | None
    """Where it was asked for."""


def watch(command: list[str], keep_output: bool = False) -> Watched:
    """Run `command` to its end; what it prints goes to stderr, or is kept."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE if keep_output else sys.stderr, text=True)
    peak = PeakMemory(process.pid)
    peak.start()
    printed, _ = process.communicate()
    seconds = time.perf_counter() - began
    peak.stop()
    return Watched(process.returncode, seconds, peak.gib, peak.processes, printed)
