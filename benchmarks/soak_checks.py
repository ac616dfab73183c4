"""What `benchmarks.soak` measures and compares: processes over time, weights bit for bit, rows of every epoch."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ingest.storage import join, list_folders, list_names
from trainer.pieces import Part, stored_pieces
from trainer.progress import MARKER, Markers

SECONDS_BETWEEN_LOOKS = 5.0
WARM_UP = 60.0
"""Seconds of a process's life that no slope is taken of."""
FIGURES = ("memory (MiB)", "files", "threads")


@dataclass
class Looks:
    """Looks at the processes below this one, every `SECONDS_BETWEEN_LOOKS`."""

    own: dict[tuple[str, int], list[tuple[float, ...]]] = field(default_factory=lambda: defaultdict(list))
    """Of each kind of process and pid: seconds, and the FIGURES."""
    whole: list[tuple[float, float, float]] = field(default_factory=list)
    """Seconds, number of processes, MiB of Ray's object store."""

    def __post_init__(self) -> None:
        self.ended, self.began = threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        now, processes, store = time.monotonic() - self.began, 0, 0.0
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                kind = kind_of(process)
                processes += kind != "S3 server"
                if kind in ("driver", "worker", "raylet", "gcs_server"):
                    memory = process.memory_full_info().uss / 2**20
                    figures = memory, float(process.num_fds()), float(process.num_threads())
                    self.own[kind, process.pid].append((now, *figures))
                if kind == "raylet":
                    store += sum(m.rss for m in process.memory_maps() if "plasma" in m.path) / 2**20
        self.whole.append((now, processes, store))

    def close(self) -> None:
        self.ended.set()
        self.thread.join()

    def slopes(self) -> list[tuple[str, str, float, float]]:
        """Kind of process, figure, its mean, and how much it grows in an hour: within processes, not between them."""
        found = []
        kinds = {kind for kind, _ in self.own}
        for kind in sorted(kinds):
            lives = [np.array(looks) for (of, _), looks in self.own.items() if of == kind]
            settled = [life[life[:, 0] > life[0, 0] + WARM_UP] for life in lives]
            for place, figure in enumerate(FIGURES, 1):
                found.append((kind, figure, *_slope([life[:, [0, place]] for life in settled if len(life) > 2])))
        whole = np.array(self.whole)
        for place, figure in ((1, "processes"), (2, "object store (MiB)")):
            found.append(("all", figure, *_slope([whole[:, [0, place]]] if len(whole) > 2 else [])))
        return found


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline()
    name = words[0] if words else ""
    if "RayTrainWorker" in name:
        return "worker"
    if "cluster.cli" in words:
        return "driver"
    short = Path(name).name
    return "S3 server" if short == "weed" else short if short in ("raylet", "gcs_server") else "other"


def _slope(lives: list[Any]) -> tuple[float, float]:
    """The mean, and the growth in an hour by least squares, each life about its own means."""
    if not lives:
        return float("nan"), float("nan")
    time_N = np.concatenate([life[:, 0] - life[:, 0].mean() for life in lives])
    value_N = np.concatenate([life[:, 1] - life[:, 1].mean() for life in lives])
    mean = float(np.concatenate([life[:, 1] for life in lives]).mean())
    return mean, float(3600 * (time_N @ value_N) / max(time_N @ time_N, 1e-9))


def weights(folder: str, name: str) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint `name`, optimizers' state included."""
    pieces = stored_pieces(folder, name, Markers(folder).marker(name), 60)
    levels = [pieces] if pieces.base is None else [pieces.base, pieces]
    found = {tensor: level.whole(tensor) for level in levels for tensor in level.names("")}
    pieces.read(Part(name, tuple(value.shape), (0,) * value.dim(), value) for name, value in found.items())
    return found


def differences(ours: str, theirs: str) -> list[str]:
    """In what two runs' final checkpoints differ, in folders of checkpoints; nothing where they are the same bits."""
    last, other = Markers(ours).latest(), Markers(theirs).latest()
    if last is None or last != other:
        return [f"the last checkpoint is {last}, and {other} undisturbed"]
    left, right = weights(ours, last), weights(theirs, last)
    found = [f"tensors {left.keys() ^ right.keys()}"] if left.keys() != right.keys() else []
    found += [n for n in left.keys() & right.keys() if left[n].numpy().tobytes() != right[n].numpy().tobytes()]
    progress, expected = (vars(Markers(folder).progress(last)) for folder in (ours, theirs))
    measured = ("seconds", "steps_seconds", "memory_gib")
    found += [key for key, value in expected.items() if key not in measured and progress[key] != value]
    if Markers(ours).best() != Markers(theirs).best():
        found.append(f"the best checkpoint is {Markers(ours).best()}, and {Markers(theirs).best()} undisturbed")
    return found


def left_in(folder: str) -> list[str]:
    """What is in a folder of checkpoints that no marker names: of a save that a fault has ended."""
    markers, found = Markers(folder), []
    complete = markers.complete()
    for name in list_folders(folder):
        pieces = [*markers.marker(name)["pieces"]] if name in complete else []
        wanted = {MARKER, *(f"{stem}.{ending}" for stem in pieces for ending in ("bin", "json"))}
        found += [f"{name}/{file}" for file in list_names(join(folder, name)) if file not in wanted]
        found += [name] if name not in complete else []
    return found


def rows_of(folder: Path) -> tuple[dict[int, Counter[int]], int]:
    """Of each epoch how often each row was given to be trained on, and how many batches were given once more.

    A batch is known by its rank and by what is left of the epoch after it: one that was lost with its worker and is
    given again is the same batch, or an `AssertionError`.
    """
    batches: dict[tuple[int, int, int], list[int]] = {}
    again = 0
    for path in folder.glob("*.rows"):
        for line in path.read_text().splitlines():
            try:
                epoch, rank, left, digests = json.loads(line)
            except ValueError:  # it was being written when its worker was killed
                continue
            before = batches.setdefault((epoch, rank, left), digests)
            again += before is not digests
            assert before == digests, f"epoch {epoch}, worker {rank}: a batch was given again with other rows"
    epochs: dict[int, Counter[int]] = defaultdict(Counter)
    for (epoch, _, _), digests in batches.items():
        epochs[epoch].update(digests)
    return epochs, again
