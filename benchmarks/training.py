"""What the training benchmarks share: a config's data and batches, steps to take, their FLOPs, and times in turns."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from cluster.config import Config
from cluster.stages import Stages
from embeddings.workers import Worker, total
from ingest.data.batch import Batch
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.reader import Reader
from ingest.settings import load_settings
from trainer.candidates import Known
from trainer.models.registry import NeuralConfig
from trainer.step import Step
from trainer.train_config import TrainConfig


def header(module: str) -> dict[str, Any]:
    """Command, commit, date, machine and versions, with which every result begins. Absolute paths are left out: they
    are of this machine alone."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if not word.rpartition("=")[2].startswith("/"):
            words.append(word)
        elif words and words[-1].startswith("--") and "=" not in word:
            words.pop()  # the option whose value it is
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *words]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "torchrec", "numpy")},
    }


def rounded(value: Any) -> Any:
    """The same with six digits behind the point, which are enough of a number that is kept."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


def _commit() -> str:
    """What the code is, `+` where it was changed since; empty where this is no checkout."""
    found = []
    for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        if done.returncode:
            return ""
        found.append(done.stdout.strip())
    return found[0] + "+" * bool(found[1])


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
        return cls(
            config.neural[name], config.train_config(name), config.data_folder, load_manifest(config.data_folder)
        )

    def reader(self, worker: Worker, split: Any = "train", evaluate: bool = False) -> Reader:
        place: dict[str, Any] = {"rank": worker.rank, "workers": worker.workers, "seed": self.train.seed}
        what = {"evaluate": evaluate, "features": self.model.needs_columns}
        items = load_items(self.data, self.manifest)
        return Reader(self.data, self.manifest, items, split, self.train.reader, **place, **what)

    def batches(self, count: int, worker: Worker) -> list[Batch]:
        """The first `count` batches of training, made beforehand."""
        return [batch for batch, _ in islice(self.reader(worker).epoch(0), count)]

    def step(self, worker: Worker) -> Step:
        known = Known(self.data, load_items(self.data, self.manifest))
        return Step(self.model, self.train, self.manifest, worker, known=known)


class Training:
    """Steps as the trainer takes them, with its two exchanges of sums, over a stream of batches."""

    def __init__(self, step: Step, batches: Iterable[Batch]) -> None:
        self.step, self.batches = step, iter(batches)
        self.number, self.targets, self.losses = 0, 0, list[float]()

    def take(self) -> None:
        """One step; `StopIteration` where no batch is left."""
        batch = self.step.asking(next(self.batches), 0)
        weights = total(self.step.weights_of(batch)).tolist()
        losses, _ = self.step.train(batch, self.number, weights)
        self.losses.append(float(total(losses.item.double())) / max(weights[0], 1e-12))
        self.number += 1
        self.targets += targets_of(batch)

    def seconds(self, steps: int) -> list[float]:
        """What each of the next steps takes."""
        found = []
        for _ in range(steps):
            began = time.perf_counter()
            self.take()
            found.append(time.perf_counter() - began)
        return found


def targets_of(batch: Batch) -> int:
    """Targets that have an item loss: unknown items have none."""
    return int((batch.item_weight_Q > 0).sum())


def counted_flops(call: Callable[[], Any]) -> float:
    """The matrix FLOPs of a call as torch's counter sees them: of every product that is made.

    So padding inside a group of sequences counts, and the masked half of a score matrix as far as a kernel works on it;
    flash kernels are taken to work on all of it.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


register_flop_formula(torch.ops.aten.addmm_)(lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1])
register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)(
    lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
)
register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)(
    lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
)


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
