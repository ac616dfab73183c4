"""The most memory that a process and all that it starts have together, each page that they share counted once (PSS)."""

from __future__ import annotations

import threading

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
