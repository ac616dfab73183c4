"""Checkpoints: sharded, written by all workers to local or s3:// storage while training goes on.

    <folder>/step-0000001200/pieces-<save>-<rank>.bin, .json    each worker's rows, weights and optimizer state
                             complete.json    written last: step, epoch, metrics, data position, config
    <folder>/best.json           the name of the best complete checkpoint

`save` copies what this worker holds, and a thread writes the copies; where the rows that training has touched since the
last whole checkpoint are less than half of that, only these are, and that one is the `base` of the new one. Threads
exchange nothing: that all workers' pieces are there is agreed by two of the numbers that they sum up before each step
anyway, and then the first one writes the marker. A folder without it is never loaded, so a run that dies in between
goes on from the checkpoint before. Loading works on another number of workers and with another sharding: each reads the
pieces that have values of its shards.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from embeddings.plan import GIB, Planned
from embeddings.touched import Touched
from embeddings.workers import Worker, gather_objects, raise_together, total
from ingest.errors import DamagedCheckpointError, InputError, StorageError
from ingest.patience import at_most
from ingest.storage import exists, join, list_folders, list_names, make_folder, remove
from trainer.background import Background
from trainer.checked_json import write_checked
from trainer.pieces import Buffers, Filled, copies, stored_pieces, write_pieces
from trainer.progress import BEST, DAMAGED, MARKER, VERSION, Markers, Progress
from trainer.state import State
from trainer.step import Step
from trainer.train_config import TrainConfig

CLOSE_SECONDS = 30


@dataclass(frozen=True)
class Saving:
    """The checkpoint that is on its way to the storage."""

    name: str
    marker: dict[str, Any]
    best: bool
    began: float
    task: Background
    """What this worker does of it."""
    progress: Progress
    """That of the run, which goes on."""
    is_whole: bool = False
    """Whether all workers' pieces are there, and the first worker's task is the marker."""


class Checkpoints(Markers):
    """The checkpoints of one model's run in `folder`. All workers call its methods at the same time."""

    def __init__(self, folder: str, settings: TrainConfig, worker: Worker) -> None:
        super().__init__(folder)
        self.settings, self.worker = settings, worker
        self.token: str | None = None
        self.saves = 0
        self.tasks = 0
        """Begun so far, in all saves: two each, the pieces and the marker."""
        self.saving: Saving | None = None
        self.last_save = time.monotonic()
        self.buffers: Buffers | None = None
        self.cancelled = threading.Event()
        self.figures: dict[str, float] = {}
        """What the last save took, for TensorBoard, until it is taken from here."""
        self.completed: float | None = None
        """When the last one was complete, as Unix time."""
        self.best_written: tuple[float | None, int | None] = (None, None)
        """The best one's metric and epoch."""
        self.base: dict[str, Any] | None = None
        """The last whole checkpoint, its name and pieces."""
        self.since: Touched | None = None
        """What knows which rows have changed since its copy."""

    def save(self, step: Step, progress: Progress, config: dict[str, Any], best: bool = False) -> None:
        """Copy a checkpoint and begin to write it; waits for the one before, where that is being written still."""
        name = f"step-{progress.step:010d}"
        self.wait_for_the_one_before(progress.step)
        self.last_save = began = time.monotonic()
        if self.token is None:
            self.token = str(gather_objects(secrets.token_hex(4))[0])
        self.saves += 1
        stems = [f"pieces-{self.token}-{self.saves}-{rank}" for rank in range(self.worker.workers)]
        marker = {"version": VERSION, "progress": asdict(progress), "config": config, "pieces": stems}
        if self.buffers is None:
            most = _copy_bytes(self.settings, step.planned, self.worker)
            self.buffers = Buffers(most, pinned=self.worker.device.type == "cuda")
        state, first = State(step), self.worker.first
        touched = self._touched(state, name)
        if touched is not None:
            marker["base"] = self.base
        else:
            self.base, self.since = None, step.touched
            step.touched.clear()
        copied: SimpleQueue[Filled | None] = SimpleQueue()
        path = join(self.folder, name)
        task = Background(partial(self._write, path, stems[self.worker.rank], self.buffers, copied), "checkpoint")
        try:
            mappings = state.collisions() if first else ()
            for filled in copies(chain(state.parts(replicated=first, touched=touched), mappings), self.buffers):
                copied.put(filled)
        finally:
            copied.put(None)
        self.saving, self.tasks = Saving(name, marker, best, began, task, progress), self.tasks + 1
        self.figures["checkpoint/copy(s)"] = time.monotonic() - began
        self.figures["checkpoint/copy(GiB)"] = self.buffers.bytes / GIB

    def _touched(self, state: State, name: str) -> dict[str, Tensor] | None:
        """By table the rows that checkpoint `name` has of it, where it builds on `base`; None where it is whole."""
        if self.base is None or self.base["checkpoint"] == name or self.since is not state.step.touched:
            return None
        touched = state.step.touched.rows()
        return touched if self._is_less(state, touched) else None

    def _is_less(self, state: State, touched: dict[str, Tensor]) -> bool:
        """Whether what is `touched` on all workers is less than half of what they hold."""
        sizes = [sum(part.nbytes for part in state.parts(False, rows)) for rows in (touched, None)]
        few, whole = total(torch.tensor(sizes, dtype=torch.float64), self.worker.host_group).tolist()
        return bool(2 * few < whole)

    def wait_for_the_one_before(self, step: int) -> None:
        """Wait until nothing is in flight, as the checkpoint of `step` does before it is begun."""
        before, began = self.saving, time.monotonic()
        waits = before is not None and not before.task.ended.is_set()
        self.wait()
        if before is not None and waits:
            seconds = time.monotonic() - began
            self.figures["checkpoint/waited(s)"] = seconds
            if self.worker.first:
                name = f"step-{step:010d}"
                self.worker.say(f"checkpoint {name} has waited {seconds:.1f} s until {before.name} was written")

    def _write(self, path: str, stem: str, buffers: Buffers, copied: SimpleQueue[Filled | None]) -> None:
        ended = False

        def filled() -> Iterator[Filled]:
            nonlocal ended
            while (found := copied.get()) is not None:
                if self.cancelled.is_set():
                    buffers.give_back(found.buffer)
                    raise InterruptedError("training has ended before the checkpoint was written")
                yield found
            ended = True

        try:
            make_folder(path)
            write_pieces(join(path, stem), filled(), buffers)
        finally:
            while not ended and (left := copied.get()) is not None:
                buffers.give_back(left.buffer)

    def votes(self) -> list[float]:
        """How many tasks this worker has ended, whether it has failed in one, and the save that it wants next, by its
        number, or 0. `count` and `wants` take their sums over all workers.

        Counts, not answers, because the sums may come when there is another task already: they are too few for that.
        """
        task, minutes = self.saving.task if self.saving else None, self.settings.checkpoint_minutes
        ended, failed = task is None or task.ended.is_set(), task is not None and task.error is not None
        late = minutes is not None and time.monotonic() - self.last_save >= 60 * minutes
        wanted = self.saves + 1 if self.worker.first and task is None and late else 0
        return [float(self.tasks if ended else self.tasks - 1), float(failed), float(wanted)]

    def wants(self, wanted: float) -> bool:
        """Whether the first worker wants the save that is next."""
        return wanted > self.saves

    def count(self, ended: float, failed: float) -> None:
        """Go on with the save in flight where all workers are through with their parts.

        Where any has failed, raise, unless that can pass and training is not at its end.
        """
        if self.saving is None or ended < self.tasks * self.worker.workers:
            return
        if failed:
            self._give_up(self.saving)
            return
        if self.saving.is_whole:
            if self.saving.best:
                self.best_written = self.saving.progress.best, self.saving.progress.best_epoch
            self.figures["checkpoint/complete(s)"] = time.monotonic() - self.saving.began
            self.completed = time.time()
            if "base" not in self.saving.marker:
                self.base = {"checkpoint": self.saving.name, "pieces": self.saving.marker["pieces"]}
            self.saving = None
            return
        finish = partial(self._finish, self.saving) if self.worker.first else lambda: None
        self.saving = replace(self.saving, is_whole=True, task=Background(finish, "checkpoint marker"))
        self.tasks += 1

    def _give_up(self, saving: Saving) -> None:
        """Leave out a checkpoint that can not be written; where it was the best one, another one may become that."""
        error, self.saving = saving.task.error, None
        if isinstance(error, OSError):
            error = StorageError(f"{join(self.folder, saving.name)}: can not be written: {error}")
        if not saving.is_whole:  # else its marker may be there
            stem = join(self.folder, saving.name, saving.marker["pieces"][self.worker.rank])
            with at_most(0), suppress(InputError, OSError):
                for ending in ("bin", "json"):
                    remove(f"{stem}.{ending}")
        try:
            raise_together(error)
        except StorageError as found:
            if saving.progress.finished:
                raise
            if self.worker.first:
                self.worker.say(f"checkpoint {saving.name} is left out, training goes on: {found}")
        if saving.best:
            progress = saving.progress
            progress.best, progress.best_epoch = self.best_written
            progress.since_best = progress.epoch - (progress.best_epoch or 0)

    def ask(self) -> None:
        """`count` with an exchange of its own, where there is no step to do it."""
        if self.saving is not None:
            ended, failed, _ = total(torch.tensor(self.votes()), self.worker.host_group).tolist()
            self.count(ended, failed)

    def wait(self) -> None:
        """Wait until nothing is in flight."""
        while self.saving is not None:
            self.saving.task.join()
            self.ask()

    def close(self) -> None:
        """End what is in flight, whatever the other workers do: it stays without a marker unless it has it.

        A storage that does not answer is left to its thread, which ends with the process.
        """
        self.cancelled.set()
        if self.saving is not None:
            self.saving.task.join(CLOSE_SECONDS)
        self.buffers = None

    def _finish(self, saving: Saving) -> None:
        """Write the marker and then the name of the best; remove what nothing needs any more.

        With both the checkpoint is complete, also where something can not be removed.
        """
        folder = join(self.folder, saving.name)
        write_checked(join(folder, MARKER), saving.marker)
        if saving.best:
            write_checked(join(self.folder, BEST), {"checkpoint": saving.name})
        try:
            for file in list_names(folder):
                if file != MARKER and file.rpartition(".")[0] not in saving.marker["pieces"]:
                    remove(join(folder, file))
            self._remove_old(saving.name)
        except (OSError, InputError) as error:
            self.worker.say(f"{self.folder}: what is no longer needed can not be removed: {error}")

    def _remove_old(self, newest: str) -> None:
        """All before `newest` but `keep`, the best, their bases, and damaged ones; also what was never completed.

        Where more than one are kept, so is the last before the base of the newest, should that be damaged.
        """
        complete, keep = self.complete(), self.settings.keep
        kept = {*complete[-keep:], *filter(None, [self.best()])}
        if keep > 1 and (base := self._base_of(newest)) is not None:
            kept.update([name for name in complete if name < base][-1:])
        kept.update([base for name in kept if (base := self._base_of(name)) is not None])
        for name in list_folders(self.folder):
            if name.startswith("step-") and name < newest and name not in kept:
                folder = join(self.folder, name)
                if not exists(join(folder, DAMAGED)):
                    remove(join(folder, MARKER))
                    remove(folder)

    def _base_of(self, name: str) -> str | None:
        """The name of what checkpoint `name` builds on; None of a whole one, and of one whose marker is damaged."""
        try:
            base = self.marker(name).get("base")
        except DamagedCheckpointError:
            return None
        return None if base is None else str(base["checkpoint"])

    def resume(self, step: Step, ours: dict[str, Any]) -> Progress:
        """Load the newest checkpoint that is sound; how far the run is with it. Damaged ones are set aside.

        Nothing is loaded where training has ended already.
        """
        while True:
            latest, progress = self._first_finds(ours)
            self.best_written = progress.best, progress.best_epoch
            if latest is None or progress.finished:
                return progress
            try:
                self.load(step, latest)
            except DamagedCheckpointError as error:
                if self.worker.first:
                    self.worker.say(f"{self.set_aside(latest, error)}; taking the one before")
            else:
                return progress

    def _first_finds(self, ours: dict[str, Any]) -> tuple[str | None, Progress]:
        """`resume_point` as the first worker sees it."""
        found, error = None, None
        if self.worker.first:
            try:
                found = self.resume_point(ours, self.settings, self.worker.say)
            except Exception as failure:
                error = failure
        raise_together(error)
        first: tuple[str | None, Progress] = gather_objects(found)[0]
        return first

    def load(self, step: Step, name: str) -> None:
        """Put the weights and the optimizer state of checkpoint `name` into `step`.

        Raises, on every worker, `DamagedCheckpointError` where it is not what it was, and `InputError` where it is of
        another model than the config has. Other failures, such as a lost worker, are none of the user's.
        """
        state, error, self.base = State(step), None, None
        try:
            state.read(stored_pieces(self.folder, name, self.marker(name), self.settings.reader.retry_seconds))
        except Exception as failure:
            error = failure
        raise_together(error)
        state.hand_over()


def _copy_bytes(settings: TrainConfig, planned: Planned, worker: Worker) -> int:
    """What a worker's copy may take of the machine's memory."""
    if settings.checkpoint_gib is not None:
        return int(settings.checkpoint_gib * GIB)
    return max(planned.machine - planned.needs[worker.rank].on_machine, 0) // 2
