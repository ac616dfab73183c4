"""A file system of some MiB, in memory, that a test fills up. Takes a user who may mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """Mounted at `folder`."""

    def __init__(self, folder: Path, mib: int) -> None:
        self.folder, self.size = folder, mib * 2**20
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def fill(self, left: int = 0) -> None:
        """Take all room but `left` bytes."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**12))
            except OSError:
                file.truncate(file.tell() - left)

    def make_room(self) -> None:
        (self.folder / "filler").unlink()

    @contextmanager
    def full(self) -> Iterator[None]:
        self.fill()
        try:
            yield
        finally:
            self.make_room()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
