"""TensorBoard's file of a run, in a folder or on an object store.

An object can not be added to: TensorBoard's own writer reads and writes it anew for each value, and ends the run when
the storage does not answer. So there the file is written on this machine, and a thread copies it about once a minute:
a run that is killed shows all but its last minute. What can not be copied is told once and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ingest.storage import copy, is_remote, join
from trainer.background import Background
from trainer.scratch import Scratch

COPY_SECONDS = 60
CLOSE_SECONDS = 30
MOST_BYTES = 2**24
"""Of a file that is copied; then another one begins."""


class Events:
    """The files in `folder`. `step`: where a run goes on; what a killed one has shown after it is taken back."""

    def __init__(self, folder: str, step: int, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.here = Scratch("intentrec-tensorboard-") if is_remote(folder) else None
        self.local = self.here.path if self.here else Path(folder)
        self.purge: int | None = step + 1
        self.writer: SummaryWriter | None = None
        self.not_before = 0
        """The Unix time before which no other file is begun after one that has failed."""
        self.copied: dict[str, int] = {}
        self.copying: Background | None = None
        self.last_copy, self.told = -float("inf"), False

    def add(self, write: Callable[[SummaryWriter], object]) -> None:
        """Write something; where the disk is full that is left out, told once, and another file begun later.

        It is tried twice: TensorBoard's thread may fail at something and tell only when it is given the next. Files
        are read in the order of their names, which for those begun within one second is not that of their making.
        """
        for _ in range(2):
            try:
                if self.writer is None:
                    if time.time() < self.not_before:
                        return
                    self.not_before = int(time.time()) + 1
                    self.writer = SummaryWriter(str(self.local), purge_step=self.purge)
                    self.purge = None
                write(self.writer)
                return
            except OSError as error:
                self._end_file()
                self._tell(error)

    def _end_file(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def flush(self, now: bool = False) -> None:
        """Let others see what was written: in a folder at once, on an object store each minute or `now`."""
        self.add(SummaryWriter.flush)
        if self.here is None or (self.copying is not None and not self.copying.ended.is_set()):
            return
        self._tell(self.copying.error if self.copying else None)
        if now or time.monotonic() - self.last_copy >= COPY_SECONDS:
            self.last_copy = time.monotonic()
            if max((size for _, size in self._files()), default=0) > MOST_BYTES:
                self._end_file()
                self.not_before = 0
            self.copying = Background(self._copy, "tensorboard")

    def _files(self) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in sorted(self.local.iterdir())]

    def _copy(self) -> None:
        for name, size in self._files():
            if self.copied.get(name) != size:
                copy(str(self.local / name), join(self.folder, name))
                self.copied[name] = size

    def _tell(self, error: Exception | None) -> None:
        if error is not None and not self.told:
            self.told = True
            self.say(f"TensorBoard's file is not in {self.folder}, which is tried again: {error}")

    def close(self) -> None:
        """A storage that does not answer is left to its thread, which ends with the process."""
        self._end_file()
        if self.here is None:
            return
        if self.copying is not None:
            self.copying.join(CLOSE_SECONDS)
        if self.copying is None or self.copying.ended.is_set():
            self.copying = Background(self._copy, "tensorboard")
            self.copying.join(CLOSE_SECONDS)
        self._tell(self.copying.error)
        if self.copying.ended.is_set():
            self.here.remove()
