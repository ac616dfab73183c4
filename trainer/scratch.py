"""Temporary folders of processes that may be killed: what a dead one has left is removed by the next that takes one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

YOUNG = 10.0
"""Seconds within which a folder may have been made and not yet been locked."""


class Scratch:
    """A folder below the system's temporary one, that is this process's until `remove()`, or until it ends or dies."""

    def __init__(self, prefix: str) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _remove_if_dead(path)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.remove = weakref.finalize(self, _remove, self.path, lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_if_dead(path: Path) -> None:
    """The kernel frees the locks of a process that is gone; another user's folder can not be opened or removed."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime < YOUNG:
            return
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        finally:
            os.close(lock)
