"""Notes what each worker trains on, below the model's folder; the workers import it as an extension of a config.

Steps take their time, so that something can happen before training is through.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from trainer.loop import Trainer

_taken = Trainer._train_step


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
    time.sleep(0.5 / self.worker.workers)
    _taken(self, batch, *more)


if Trainer._train_step.__name__ != "_recorded":
    Trainer._train_step = _recorded  # type: ignore[method-assign]
