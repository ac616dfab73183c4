"""How far a training run is, as the markers of its checkpoints say: JSON alone, so reading it imports no torch.

<folder>/step-0000001200/complete.json    written last: progress, the config that it was trained with, names of pieces
<folder>/step-0000001200/damaged.json     in its place where a checkpoint was found to be damaged: why, and the marker
<folder>/best.json                        the name of the best complete checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ingest.errors import DamagedCheckpointError, InputError
from ingest.storage import exists, join, list_folders, read_text, remove, write_text
from trainer.checked_json import check, read_object, write_checked
from trainer.models.registry import NeuralConfig
from trainer.train_config import TrainConfig

VERSION = 2
"""Of the checkpoints' format: 1 had torch's own, whose metadata is a pickle."""
MARKER, DAMAGED, BEST = "complete.json", "damaged.json", "best.json"
POINTS = 4096
"""Of the training curve, at most; even."""
MAY_CHANGE = {
    f"train.{key}"
    for key in (
        *("epochs", "patience", "keep", "log_steps", "learning_rate", "decay", "clip_norm"),
        *("checkpoint_steps", "checkpoint_minutes", "checkpoint_gib"),
        *("reader.on_bad_shard", "reader.retry_seconds", "reader.fetch"),
    )
}
"""What may be other than in the checkpoint that training goes on from; the tables' placement may, too."""
PLACEMENT = {"sharding", "kernel", "cache_load_factor", "communication", "hbm_gib", "ddr_gib"}


@dataclass
class Progress:
    """How far a training run is; part of every checkpoint's marker."""

    step: int = 0
    """Steps taken."""
    warm: float = -1.0
    """Steps as the warm-up counts them, which is by their size: a step of half the workers is half a step."""
    epoch: int = 0
    """The epoch to go on with."""
    position: dict[str, Any] | None = None
    """Where in that epoch, or None for its beginning."""
    best: float | None = None
    """The best validation metric so far."""
    best_epoch: int | None = None
    since_best: int = 0
    """Epochs since the best one."""
    finished: bool = False
    seconds: float = 0.0
    steps_seconds: float = 0.0
    """The part of them that was no validation."""
    targets: int = 0
    """Targets that steps were taken for, an epoch's anew in each."""
    memory_gib: float = 0.0
    """The most that any worker took."""
    losses: dict[str, float] = field(default_factory=dict)
    """Sums of the item losses and of each intent's since the curve's last point, within an epoch."""
    weights: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """What the item losses and the intents' among them weigh."""
    skipped: list[tuple[str, int, int, str]] = field(default_factory=list)
    """Row groups of the training data that were set aside: shard, row group, rows, reason."""
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    """The mean loss up to each of some steps, since the one before."""
    validation_curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.warm < 0:  # at the beginning, and in a checkpoint of before this was kept
            self.warm = float(self.step)

    def add_to_curve(self, loss: float) -> None:
        """A point of the curve. Where they become many, every two are one: each checkpoint's marker holds them all."""
        if len(self.train_curve) >= POINTS:
            edges = [0, *(step for step, _ in self.train_curve)]
            sums = [
                loss * (end - begin) for (begin, end), (_, loss) in zip(pairwise(edges), self.train_curve, strict=True)
            ]
            self.train_curve = [
                (edges[n + 2], (sums[n] + sums[n + 1]) / (edges[n + 2] - edges[n])) for n in range(0, POINTS, 2)
            ]
        self.train_curve.append((self.step, loss))

    def is_finished(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or the early stop has come."""
        return self.epoch >= config.epochs or self.since_best >= config.patience


def identity(model: NeuralConfig, train: TrainConfig, data: str) -> dict[str, Any]:
    """What a run was trained with: checkpoints keep it. `data` is the prepared data's fingerprint."""
    return {
        "model": model.model_dump(exclude={"train"}),
        "train": train.model_dump(exclude={"tables": PLACEMENT}),
        "data": data,
    }


def differences(before: dict[str, Any], ours: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The keys, such as train.tables.learning_rate, in which `ours` differs: our value, and that of `before`."""
    for key, value in ours.items():
        found = before.get(key)
        if isinstance(value, dict) and isinstance(found, dict) and value.keys() == found.keys():
            yield from ((f"{key}.{below}", *both) for below, *both in differences(found, value))
        elif value != found:
            yield key, value, found


class Markers:
    """The markers of one model's checkpoints in `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def complete(self) -> list[str]:
        """The names of the complete checkpoints, oldest first."""
        return self._with(MARKER)

    def _with(self, file: str) -> list[str]:
        names = [name for name in list_folders(self.folder) if name.startswith("step-")]
        return [name for name in names if exists(join(self.folder, name, file))]

    def latest(self) -> str | None:
        """The newest complete checkpoint's name."""
        names = self.complete()
        return names[-1] if names else None

    def best(self) -> str | None:
        """The best checkpoint's name, if there is one."""
        path = join(self.folder, BEST)
        if not exists(path):
            return None
        content = read_object(path)
        if content.keys() == {"checkpoint"}:
            raise self._other_version(1)
        return str(check(path, content)["checkpoint"])

    def require_best(self, model: str) -> str:
        """The best checkpoint's name; `InputError` where the model has none yet."""
        name = self.best()
        if name is None:
            raise InputError(f"{self.folder}: no checkpoint of model {model} there; `intentrec train` makes one")
        return name

    def config(self, name: str) -> dict[str, Any]:
        """The `identity` of the run that checkpoint `name` comes from."""
        config: dict[str, Any] = self.marker(name)["config"]
        return config

    def progress(self, name: str) -> Progress:
        """What the marker of checkpoint `name` says."""
        return Progress(**self.marker(name)["progress"])

    def marker(self, name: str) -> dict[str, Any]:
        """The marker of checkpoint `name`. Raises `InputError` where another release wrote it in another format."""
        path = join(self.folder, name, MARKER)
        content = read_object(path)
        if content.keys() == {"progress", "config"}:
            raise self._other_version(1)
        content = check(path, content)
        if content["version"] != VERSION:
            raise self._other_version(content["version"])
        return content

    def _other_version(self, version: int) -> InputError:
        return InputError(
            f"{self.folder}: has checkpoints of format {version}, and this release reads format {VERSION}: take "
            "another name for the run, or remove that folder to train anew"
        )

    def set_aside(self, name: str, reason: object) -> str:
        """Take its marker from the damaged checkpoint `name`; gives a sentence that says so, and why."""
        folder = join(self.folder, name)
        try:
            marker = read_text(join(folder, MARKER))
        except (FileNotFoundError, UnicodeDecodeError):
            marker = ""
        write_text(join(folder, DAMAGED), json.dumps({"reason": str(reason), "marker": marker}))
        remove(join(folder, MARKER))
        return f"checkpoint {name} is damaged and set aside ({join(folder, DAMAGED)}): {reason}"

    def resume_point(
        self, ours: dict[str, Any], config: TrainConfig, say: Callable[[str], None] = print
    ) -> tuple[str | None, Progress]:
        """The newest complete checkpoint, if there is one, and how far a run of `config` is with it.

        One whose marker is damaged is set aside, which `say` is given. Raises `InputError` where it was trained with
        another config or on other data than `ours`, an `identity`, and where only damaged ones are left.
        """
        while (latest := self.latest()) is not None:
            try:
                marker = self.marker(latest)
            except DamagedCheckpointError as error:
                say(f"{self.set_aside(latest, error)}; taking the one before")
                continue
            self._check_same(marker["config"], ours)
            progress = Progress(**marker["progress"])
            self._mend_best(progress, say)
            progress.finished = progress.is_finished(config)
            return latest, progress
        if damaged := self._with(DAMAGED):
            path = join(self.folder, damaged[-1], DAMAGED)
            raise InputError(
                f"{self.folder}: no checkpoint is left to go on from, {len(damaged)} are damaged, the newest because "
                f"{json.loads(read_text(path))['reason']}: remove that folder to train anew"
            )
        return None, Progress()

    def _mend_best(self, progress: Progress, say: Callable[[str], None]) -> None:
        """Write the name of the best checkpoint anew where that file is damaged or names another than `progress`, the
        newest one's, as where a run ended between a best one's marker and it. One that is gone or set aside stays best.
        """
        named = None
        for name in self.complete():
            with suppress(DamagedCheckpointError):
                found = self.progress(name)
                if found.position is None and found.epoch == progress.best_epoch:
                    named = name
        try:
            best, why = self.best(), f"{join(self.folder, BEST)} is missing or names another one"
        except DamagedCheckpointError as error:
            if named is None:
                raise
            best, why = None, str(error)
        if named is not None and best != named:
            write_checked(join(self.folder, BEST), {"checkpoint": named})
            say(f"{why}: by what the newest checkpoint says the best one is {named}, which is written there")

    def _check_same(self, before: dict[str, Any], ours: dict[str, Any]) -> None:
        for key, value, found in differences(before, {name: ours[name] for name in ("model", "train")}):
            if key not in MAY_CHANGE:
                raise InputError(
                    f"{self.folder}: was trained with {key} = {found!r}, the config has {value!r}: take another name "
                    "for the run, or remove that folder"
                )
        if before["data"] != ours["data"]:
            raise InputError(
                f"{self.folder}: was trained on other prepared data than there now are: take another name for the "
                "run, or remove that folder"
            )
