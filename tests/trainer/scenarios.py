"""What tests of checkpoints run on two real processes."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from embeddings.workers import Worker
from ingest.errors import InputError
from tests.gated import gated
from tests.models import KINDS
from tests.small import MODEL, Data, make_step, make_trainer, small_pieces, train_config, watched, weights
from trainer.checkpoint import Checkpoints
from trainer.models.registry import NeuralConfig
from trainer.progress import Progress, identity
from trainer.step import Step

INCREMENTAL: dict[str, dict[str, Any]] = {
    "row_wise": {"sharding": "row_wise"},
    "one number a row": {"sharding": "row_wise", "optimizer": "rowwise_adagrad"},
    "table_wise": {"sharding": "table_wise", "optimizer": "rowwise_adagrad"},
    "column_wise": {"sharding": "column_wise", "dimension": 256, "model": KINDS["gru"]},
}


def flip(path: Path, place: int) -> None:
    """Damage one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def set_aside(data: Data, folder: Path, worker: Worker) -> dict[str, Any]:
    """Of two checkpoints the newer is damaged where the last worker alone reads it; what all go on with."""
    said: list[str] = []
    worker = Worker(worker.rank, worker.workers, say=said.append)
    config, ours = train_config(tables={"sharding": {"item": "row_wise"}}), identity(MODEL, train_config(), "data")
    checkpoints = Checkpoints(str(folder / f"set-aside-{worker.workers}"), config, worker)
    before: dict[str, Tensor] = {}
    for number in (1, 2):
        step = make_step(data.manifest, worker, seed=number, tables=config.tables.model_dump())
        checkpoints.save(step, Progress(step=number), ours)
        before = before or weights(step)
    checkpoints.wait()
    if worker.first:
        (pieces,) = Path(checkpoints.folder, "step-0000000002").glob(f"*-{worker.workers - 1}.bin")
        flip(pieces, 9)
    dist.barrier()
    again = make_step(data.manifest, worker, seed=3, tables=config.tables.model_dump())
    progress = checkpoints.resume(again, ours)
    return {"before": before, "after": weights(again), "step": progress.step, "said": said}


def full(data: Data, folder: Path, worker: Worker) -> dict[str, Any]:
    """An epoch in which the last worker's disk is full until its third checkpoint, and one in which it stays so."""
    last = worker.rank == worker.workers - 1
    said: list[str] = []
    worker = Worker(worker.rank, worker.workers, say=said.append)
    found: dict[str, Any] = {"said": said}
    with gated(OSError(errno.ENOSPC, "No space left on device") if last else None) as gate:
        gate.open.set()
        for times in (2, 10_000):
            gate.times = times
            trainer = make_trainer(
                data.url, f"gated://{folder}/full-{times}", worker, epochs=1, keep=99, checkpoint_steps=1
            )
            with watched() as taken:
                try:
                    trainer.fit()
                except InputError as error:
                    found["error"] = f"{type(error).__name__} {error}"
            found[times] = trainer.checkpoints.complete(), len(taken), weights(trainer.step)
        found["left"] = [str(path) for path in (folder / "full-10000").rglob("pieces-*")]
    return found


def by_clock(data: Data, folder: Path, worker: Worker) -> dict[str, Any]:
    """An epoch with a checkpoint whenever none is in flight."""
    trainer = make_trainer(
        data.url, folder / f"clock-{worker.workers}", worker, epochs=1, keep=99, checkpoint_minutes=1e-9
    )
    trainer.fit()
    return {"complete": trainer.checkpoints.complete(), "weights": weights(trainer.step)}


def drifting(data: Data, folder: Path, worker: Worker, what: str) -> dict[str, Any]:
    """Two epochs in which the second worker has to wait for each batch, or to compute longer for it."""
    said: list[str] = []
    own_seconds: list[float] = []

    def watch(_: str, found: Mapping[str, float]) -> None:
        own_seconds.extend(value for name, value in found.items() if name == "own_seconds")

    worker = Worker(worker.rank, worker.workers, say=said.append, watch=watch)
    trainer = make_trainer(data.url, folder / f"drifting-{what}", worker, log_steps=1)
    epoch, losses = trainer.reader.epoch, Step.losses

    def late(*place: Any) -> Iterator[Any]:
        for found in epoch(*place):
            time.sleep(0.3)
            yield found

    def long(self: Step, *batch: Any) -> Any:
        until = time.thread_time() + 0.3
        while time.thread_time() < until:
            pass
        return losses(self, *batch)

    try:
        if not worker.first and what == "data":
            trainer.reader.epoch = late  # type: ignore[method-assign]
        elif not worker.first:
            Step.losses = long  # type: ignore[method-assign]
        with watched() as taken:
            trainer.fit()
    finally:
        Step.losses = losses  # type: ignore[method-assign]
    return {"said": said, "own_seconds": own_seconds, "targets": [len(batch.target_Q) for batch in taken]}


def incremental(
    data: Data,
    folder: Path,
    worker: Worker,
    sharding: str,
    dimension: int = 8,
    optimizer: str = "adagrad",
    model: NeuralConfig = MODEL,
) -> dict[str, Any]:
    """A whole checkpoint and two of what has changed since, all tables' rows and those with a mapping among them; the
    weights with the last one, which another step has loaded, and both after one more step."""
    tables = ("item", "action", "tags", "device", "genres", "content_type", "release_age")
    settings: dict[str, Any] = {"sharding": dict.fromkeys(tables, sharding), "dimension": dimension}
    zch = {} if sharding == "column_wise" else {"genres": {"size": 5, "interval": 2}}
    settings |= {"optimizer": optimizer, "zch": zch}
    changes: dict[str, Any] = {"tables": settings, "loss": {"kind": "sampled", "negatives": 1}}
    step = make_step(data.manifest, worker, model, **changes)
    name = f"incremental-{worker.workers}-{sharding}-{optimizer}"
    checkpoints = Checkpoints(str(folder / name), train_config(keep=9, **changes), worker)
    mappings: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    original, Checkpoints._is_less = Checkpoints._is_less, lambda *_: True  # type: ignore[method-assign]
    with small_pieces(dimension * 8 * 4):  # eight rows of any table
        try:
            for number in range(3):
                _take(step, data, worker, number)
                checkpoints.save(step, Progress(step=number + 1), {})
                saved = weights(step)
                checkpoints.wait()
                again = make_step(data.manifest, worker, model, seed=9, **changes)
                Checkpoints(checkpoints.folder, checkpoints.settings, worker).load(again, str(checkpoints.latest()))
                mappings.append((_mappings(step), _mappings(again)))
        finally:
            Checkpoints._is_less = original  # type: ignore[method-assign]
        again = make_step(data.manifest, worker, model, seed=9, **changes)
        again.config, again.sampler, again.recommender.tables.collisions.seed = step.config, step.sampler, 0
        checkpoints.load(again, "step-0000000003")
        loaded = weights(again)
    for each in (step, again):
        _take(each, data, worker, 3)
    bases = [checkpoints.marker(name).get("base", {}).get("checkpoint") for name in checkpoints.complete()]
    return {"saved": saved, "loaded": loaded, "after": weights(step), "again": weights(again), "bases": bases,
            "mappings": mappings}  # fmt: skip


def _mappings(step: Step) -> dict[str, Tensor]:
    """Which values have a row of a table that they share, and what was seen since they competed: it may be nothing."""
    return {name: values.clone() for name, values in step.recommender.tables.collisions.state().items()}


def _take(step: Step, data: Data, worker: Worker, number: int) -> None:
    """A step on one row a worker, in the first step on another one than later."""
    rows = [3 * min(number, 1) + rank for rank in range(worker.workers)]
    weights_of_all = step.weights_of(step.asking(data.batch(rows), 0)).tolist()
    step.train(step.asking(data.batch([rows[worker.rank]]), 0), number, weights_of_all)
