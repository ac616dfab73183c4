"""What `benchmarks.soak` sees of a worker: an extension of its config, which every worker imports.

Below the folder of the variable SOAK each worker leaves <pid>.phase, in what it is just now, and <pid>.rows, a line of
JSON for each batch of training that its reader gave: epoch, rank, what is left of the epoch, a number a sequence.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any


def _install(folder: Path) -> None:
    import cluster.work
    from ingest.data.reader import Reader
    from trainer.checkpoint import Checkpoints
    from trainer.loop import Trainer

    rows, phase = (folder / f"{os.getpid()}.{ending}" for ending in ("rows", "phase"))
    inside: list[str] = []

    @contextmanager
    def within(name: str) -> Iterator[None]:
        inside.append(name)
        phase.write_text(name)
        try:
            yield
        finally:
            inside.remove(name)
            phase.write_text(inside[-1] if inside else "starting")

    def labelled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with within(name):
                return function(*arguments, **options)

        return call

    epoch_of = Reader.epoch

    def epoch(self: Reader, epoch: int, position: Any = None) -> Iterator[Any]:
        for batch, left in epoch_of(self, epoch, position):
            if self.split == "train" and not self.evaluate:
                _record(rows, self.rank, epoch, batch, zlib.crc32(repr(left.blocks()).encode()))
            yield batch, left

    phase.write_text("starting")
    Reader.epoch = epoch  # type: ignore[assignment, method-assign]
    cluster.work.train_models = labelled("loading", cluster.work.train_models)
    Trainer._epoch = labelled("step", Trainer._epoch)  # type: ignore[method-assign]
    cluster.work.validate = labelled("validation", cluster.work.validate)
    cluster.work.evaluate_models = labelled("evaluation", cluster.work.evaluate_models)
    Checkpoints._write = labelled("checkpoint", Checkpoints._write)  # type: ignore[method-assign]
    Checkpoints._finish = labelled("checkpoint", Checkpoints._finish)  # type: ignore[method-assign]


def _record(path: Path, rank: int, epoch: int, batch: Any, left: int) -> None:
    offsets = [0, *batch.lengths_B.cumsum(0).tolist()]
    time, item = batch.time_T.numpy(), batch.item_T.numpy()
    digests = [
        zlib.crc32(item[begin:end].tobytes(), zlib.crc32(time[begin:end].tobytes())) for begin, end in pairwise(offsets)
    ]
    with path.open("a") as file:
        file.write(json.dumps([epoch, rank, left, digests]) + "\n")


if "SOAK" in os.environ and "cluster.work" in sys.modules:  # not on the driver, which does without TorchRec
    _install(Path(os.environ["SOAK"]))
