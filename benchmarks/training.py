"""What the training benchmarks share: a config's data and batches, a step to drive, and times taken in turns."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from cluster.config import Config
from cluster.stages import Stages
from embeddings.workers import Worker
from ingest.data.batch import Batch
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.reader import Reader
from ingest.settings import load_settings
from trainer.models.registry import NeuralConfig
from trainer.step import Step
from trainer.train_config import TrainConfig


def header(module: str = "train") -> dict[str, Any]:
    """Command, date, machine and versions, with which every result begins."""
    from importlib.metadata import version

    return {
        "command": " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"architecture": platform.machine(), "processor": _processor(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchrec", "numpy")},
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return platform.processor()


@contextlib.contextmanager
def prepared(path: str, overrides: Sequence[str]) -> Iterator[Config]:
    """The config with its data made and prepared: in `storage=...` to keep them, else in a folder that goes."""
    with tempfile.TemporaryDirectory() as temporary:
        config = load_settings(Config, path, [f"storage={temporary}", *overrides])
        with contextlib.redirect_stdout(sys.stderr):
            stages = Stages(config, ray=False)
            stages.make_log()
            stages.prepare()
        yield config


@dataclass(frozen=True)
class Case:
    """A model, how it is trained, and on what."""

    model: NeuralConfig
    train: TrainConfig
    data: str
    manifest: Manifest

    @classmethod
    def of(cls, config: Config, name: str) -> Case:
        model = config.models[name]
        if not isinstance(model, NeuralConfig):
            sys.exit(f"{name} is not trained")
        return cls(model, config.train_config(name), config.data_folder, load_manifest(config.data_folder))

    def reader(self, worker: Worker, split: Any = "train", evaluate: bool = False) -> Reader:
        return Reader(
            self.data,
            self.manifest,
            load_items(self.data, self.manifest),
            split,
            self.train.reader,
            rank=worker.rank,
            workers=worker.workers,
            seed=self.train.seed,
            evaluate=evaluate,
            features=self.model.reads_features,
        )

    def batches(self, count: int, worker: Worker) -> list[Batch]:
        """The first `count` batches of training, made beforehand."""
        return [batch for batch, _ in islice(self.reader(worker).epoch(0), count)]

    def step(self, worker: Worker) -> Step:
        return Step(self.model, self.train, self.manifest, worker)


def targets_of(batch: Batch) -> int:
    """Targets that have a loss: unknown items have none."""
    return int((batch.weight_Q > 0).sum())


class Driver:
    """Takes steps over batches that are there already, again and again."""

    def __init__(self, step: Step, batches: list[Batch]) -> None:
        self.step, self.batches, self.number = step, batches, 0
        self.weights = [float(batch.weight_Q.sum()) for batch in batches]

    def take(self) -> Batch:
        """One training step; its batch."""
        place = self.number % len(self.batches)
        self.step.train(self.batches[place], self.number, self.weights[place] * self.step.worker.workers)
        self.number += 1
        return self.batches[place]

    def forward_and_backward(self) -> None:
        """Loss and backward pass of each batch, without clipping and the dense part's optimizer."""
        self.step.parallel.train()
        for number, batch in enumerate(self.batches):
            losses = self.step.losses(batch, number)
            loss = losses.item + self.step.intent_weight * sum(losses.intents.values())
            (loss / self.weights[number]).backward()
            self.step.optimizer.zero_grad(set_to_none=True)

    def round(self) -> float:
        """One step for each batch: seconds."""
        began = time.perf_counter()
        for _ in self.batches:
            self.take()
        return time.perf_counter() - began


def in_turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each side gives in each round, A B A B; a round before them warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if number:
                found[name].append(value)
    return found


def ratio_of(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, with the least and the greatest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "range": [round(min(ratios), 3), round(max(ratios), 3)]}
