"""Notes in every worker when it comes to what; an extension of the configs of benchmarks/faults.py."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

IMPORTED = time.time()
MARKS = "marks.jsonl"


def marked(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
    """`of`, noting when it begins, ends or fails, in the model's folder."""

    def call(self: Any, *more: Any) -> Any:
        run = getattr(self, "run", None)
        folder = run.folder if run else os.path.dirname(self.folder)
        note(folder, f"{name} begins")
        try:
            result = of(self, *more)
        except Exception as error:
            note(folder, f"{name} fails", type(error).__name__)
            raise
        note(folder, f"{name} ends")
        return result

    return call


def note(folder: str, what: str, more: str = "") -> None:
    mark = {"at": time.time(), "pid": os.getpid(), "what": what, "more": more, "imported": IMPORTED}
    mark["created"] = psutil.Process().create_time()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Path(folder, MARKS).open("a") as file:
        file.write(json.dumps(mark) + "\n")


def read_marks(file: Path) -> list[dict[str, Any]]:
    """What is noted so far in `file`, which others are writing and which may not be there yet."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def install() -> None:
    from trainer.checkpoint import Checkpoints
    from trainer.loop import Trainer

    Checkpoints.resume = marked("load", Checkpoints.resume)  # type: ignore[method-assign]
    Trainer._train_step = marked("step", Trainer._train_step)  # type: ignore[method-assign]


if ray.is_initialized():  # in a worker; the driver reads the config before it joins Ray
    install()
