"""What tuning keeps in <run>/tune: results.json with every trial that has ended, best.yaml with the best settings.

Both are JSON and YAML alone, so what an interrupted command left is gone on with without unpickling anything.
"""

from __future__ import annotations

import datetime
import sys
from typing import Any, Literal

import yaml

from cluster.config import Config
from cluster.tune_space import Trial, asked, overrides, trials_of
from ingest.errors import InputError
from ingest.settings import Record
from ingest.storage import exists, join, read_text, write_text
from trainer.progress import differences
from trainer.versions import installed

RESULTS, BEST = "results.json", "best.yaml"


class Outcome(Trial):
    """A trial that has ended: `finished` by itself, `stopped` because others of its model were better, or `failed`."""

    status: Literal["finished", "stopped", "failed"]
    metric: str
    curve: list[tuple[int, float]]
    """The validation metric after each epoch."""
    seconds: float
    reason: str = ""
    """Why it failed."""

    @property
    def best(self) -> float:
        return max((value for _, value in self.curve), default=float("-inf"))

    @property
    def best_epoch(self) -> int | None:
        return next((epoch for epoch, value in self.curve if value == self.best), None)

    @property
    def said(self) -> str:
        """What it sets, in words."""
        return ", ".join(f"{key} {value}" for key, value in self.settings.items()) or "as the config has it"


class Results(Record):
    """The content of results.json."""

    name: str
    created: str
    command: str
    versions: dict[str, str]
    asked: dict[str, Any]
    """What the outcome of the trials depends on."""
    trials: list[Outcome]


class Kept:
    """The results in the folder of `config`, which grow trial by trial."""

    def __init__(self, config: Config) -> None:
        """Raises `InputError` where the results there are of another space, of other models or data."""
        self.config, self.url, self.asked = config, join(config.tune_folder, RESULTS), asked(config)
        self.outcomes: dict[str, Outcome] = {}
        if exists(self.url):
            try:
                found = Results.model_validate_json(read_text(self.url))
            except ValueError:
                raise InputError(f"{self.url}: is damaged; remove it to tune anew") from None
            self._check_same(found.asked)
            self.asked["models"] = found.asked["models"] | self.asked["models"]
            self.outcomes = {outcome.name: outcome for outcome in found.trials}

    def _check_same(self, before: dict[str, Any]) -> None:
        models = {name: before["models"].get(name, ours) for name, ours in self.asked["models"].items()}
        for key, value, found in differences(before | {"models": models}, self.asked):
            raise InputError(
                f"{self.config.tune_folder}: was tuned with {key} = {found!r}, the config has {value!r}: take another "
                "name for the run, or remove that folder"
            )

    def left(self) -> list[Trial]:
        """The trials that have not ended yet."""
        return [trial for trial in trials_of(self.config) if trial.name not in self.outcomes]

    def add(self, outcome: Outcome) -> None:
        """Keep a trial that has ended."""
        self.outcomes[outcome.name] = outcome
        results = Results(
            name=self.config.name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=" ".join(["intentrec", *sys.argv[1:]]),
            versions={name: installed(name) or "" for name in ("torch", "torchrec", "ray")},
            asked=self.asked,
            trials=list(self.outcomes.values()),
        )
        write_text(self.url, results.model_dump_json(indent=1))

    def end(self) -> None:
        """Write best.yaml and print the best settings of each model."""
        best = [self._best(model) for model in self.config.tuned]
        target = join(self.config.tune_folder, BEST)
        write_text(target, yaml.safe_dump(overrides(best), sort_keys=False))
        for trial in best:
            own = self.outcomes[f"{trial.model}-0"]
            print(f"model {trial.model}: best validation {trial.metric} {trial.best:.4f}, in epoch {trial.best_epoch} "
                  f"of trial {trial.number} ({trial.said}); as the config has it {own.best:.4f}")  # fmt: skip
        print(f"all trials   {self.url}")
        print(f"best         {target}, taken by `intentrec run CONFIG --with {target}`")

    def _best(self, model: str) -> Outcome:
        """Of those that did not fail: a run with the settings of one that did would fail, too."""
        ours = [outcome for outcome in self.outcomes.values() if outcome.model == model]
        sound = [outcome for outcome in ours if outcome.curve and outcome.status != "failed"]
        if not sound:
            raise InputError(f"model {model}: no trial has come to its end: {ours[0].reason}")
        return max(sound, key=lambda outcome: (outcome.best, -outcome.number))
