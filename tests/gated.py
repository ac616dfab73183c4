"""A storage on this machine that writes pieces of checkpoints when a test lets it, or fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

WAIT = 60
"""Seconds after which a test that would wait for ever fails."""


class Gate:
    """What the storage does: pieces pass while it is `open`, or fail with `error`."""

    def __init__(self, error: OSError | None = None) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.error, self.times = error, 10_000
        """What pieces fail with, and how many of them."""
        self.log: list[str] = []
        """What was begun to be written, by the end of its path."""

    def pass_one(self, path: str) -> None:
        self.log.append("/".join(path.split("/")[-2:]))
        if path.endswith(".bin"):
            self.reached.set()
            if self.error is not None and self.times:
                self.times -= 1
                raise self.error
            if not self.open.wait(WAIT):
                raise TimeoutError("nobody has opened the gate")


class GatedStorage(LocalFileSystem):
    """Local files under gated://, written through the gate."""

    protocol = "gated"
    gate = Gate()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(path.removeprefix("gated://")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            self.gate.pass_one(path)
        return super()._open(path, mode, **options)


@contextmanager
def gated(error: OSError | None = None) -> Iterator[Gate]:
    """A closed gate for all that is written below gated:// while the block runs."""
    fsspec.register_implementation("gated", GatedStorage, clobber=True)
    GatedStorage.gate = Gate(error)
    try:
        yield GatedStorage.gate
    finally:
        GatedStorage.gate.open.set()
