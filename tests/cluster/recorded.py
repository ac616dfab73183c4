"""Notes what each worker trains on, below the model's folder; the workers import it as an extension of a config.

Steps take their time, so that something can happen before training is through, but where there is a file `quick` in the
model's folder. Where there is `hangs-loading` a worker removes it and hangs for ever while it loads a checkpoint; and
the thread of one that writes a checkpoint where there is `hangs-writing`. Where there is `loops` one computes for ever
in a step, not one of those that may take long; and one hangs in the evaluation of the test split where there is
`hangs-ranking` in the run's folder.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import evaluation.evaluate
from embeddings.workers import FIRST, Worker
from ingest.data.batch import Batch
from ingest.data.reader import Reader
from trainer.checkpoint import Checkpoints
from trainer.loop import Trainer
from trainer.state import State

_steps: Counter[int] = Counter()
"""How many this process has taken in each epoch."""
_with_progress = evaluation.evaluate.with_progress
_taken, _fit = Trainer._train_step, Trainer.fit


def _recorded(self: Trainer, batch: Any, *more: Any) -> None:
    progress, pairs = self.progress, zip(batch.time_T.tolist(), batch.item_T.tolist(), strict=True)
    step = {
        "at": time.time(),
        "pid": os.getpid(),
        "workers": self.worker.workers,
        "epoch": progress.epoch,
        "step": progress.step,
        "warm": progress.warm,
        "inputs": list(pairs) if batch.rows else [],
    }
    with Path(self.run.folder, f"taken-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(step) + "\n")
    if not Path(self.run.folder, "quick").exists():
        time.sleep(0.5 / self.worker.workers)
    _steps[progress.epoch] += 1
    if _steps[progress.epoch] > FIRST + 1 and _is_the_one(Path(self.run.folder, "loops")):
        while True:
            pass
    _taken(self, batch, *more)


def _is_the_one(file: Path) -> bool:
    """Of the workers that look for a file the one that has removed it."""
    with suppress(FileNotFoundError):
        file.unlink()
        return True
    return False


def _ranked(reader: Reader, worker: Worker, doing: str) -> Iterator[Batch]:
    for number, batch in enumerate(_with_progress(reader, worker, doing)):
        hangs = Path(reader.source.url).with_name("hangs-ranking")
        if number > FIRST and doing.startswith("evaluate") and _is_the_one(hangs):
            threading.Event().wait()
        yield batch


def _hangs_once(of: type, method: str, file: Path) -> None:
    """Before `method` of a class is called, where the file is there."""
    original = getattr(of, method)

    def held(*arguments: Any, **options: Any) -> Any:
        if _is_the_one(file):
            threading.Event().wait()
        return original(*arguments, **options)

    setattr(of, method, held)


def _fit_or_hang(self: Trainer) -> Any:
    _hangs_once(State, "read", Path(self.run.folder, "hangs-loading"))
    _hangs_once(Checkpoints, "_write", Path(self.run.folder, "hangs-writing"))
    return _fit(self)


if Trainer._train_step.__name__ != "_recorded":
    Trainer._train_step, Trainer.fit = _recorded, _fit_or_hang  # type: ignore[method-assign]
    evaluation.evaluate.with_progress = _ranked
