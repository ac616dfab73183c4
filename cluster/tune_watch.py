"""What Ray Tune calls while trials run: who may go on, and what is kept of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from cluster.config import Config
from cluster.failures import last_line
from cluster.tune_results import Kept, Outcome
from cluster.tune_space import Trial, section
from ingest.storage import join, remove


class OneForEachModel(FIFOScheduler):  # type: ignore[misc]
    """An ASHA for each model, so that trials of one do not end those of another; a trial 0 is never stopped."""

    def __init__(self, config: Config, ended: Iterable[Outcome]) -> None:
        """`ended`: the trials of before, of which each ASHA is told what they reported; some of other models."""
        super().__init__()
        tune = section(config)
        self.asha = {}
        for model in config.tuned:
            most = tune.epochs or config.train_config(model).epochs
            grace = min(tune.grace, most)
            self.asha[model] = ASHAScheduler("epoch", "value", "max", most, grace, tune.reduction)
        for outcome in ended:
            if (asha := self.asha.get(outcome.model)) is not None:
                trial = SimpleNamespace(trial_id=outcome.name)
                asha.on_trial_add(None, trial)
                for epoch, value in outcome.curve:
                    asha.on_trial_result(None, trial, {"epoch": epoch, "value": value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.asha[given(trial).model].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        decision: str = self.asha[given(trial).model].on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if given(trial).number == 0 else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        self.asha[given(trial).model].on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.asha[given(trial).model].on_trial_remove(tune_controller, trial)


class Keeper(Callback):  # type: ignore[misc]
    """Keeps the outcome of every trial that ends, prints a line for it, and removes its checkpoints in `folder`.

    `lost`: what the others died of.
    """

    def __init__(self, kept: Kept, folder: str) -> None:
        self.kept, self.folder = kept, folder
        self.reports: dict[str, dict[int, dict[str, Any]]] = {}
        """Of each trial by epoch, which is 0 for what it failed of."""
        self.lost: list[str] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.reports.setdefault(given(trial).name, {})[result["epoch"]] = dict(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = given(trial)
        reports = self.reports[ours.name]
        reason = reports.pop(0, {}).get("failed", "")
        last = reports[max(reports)] if reports else {"seconds": 0.0, "ended": False}
        outcome = Outcome(
            **ours.model_dump(),
            status="failed" if reason else "finished" if last["ended"] else "stopped",
            metric=self.kept.config.train_config(ours.model).metric,
            curve=[(epoch, report["value"]) for epoch, report in sorted(reports.items())],
            seconds=round(last["seconds"], 1),
            reason=reason,
        )
        self.kept.add(outcome)
        remove(join(self.folder, ours.name))
        value = f"{outcome.metric} {outcome.best:.4f}" if outcome.curve else outcome.reason
        facts = f"{outcome.status} after {len(outcome.curve)} epochs and {outcome.seconds:.0f} s: {value}"
        print(f"trial {ours.name}, {outcome.said}: {facts}", flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self.lost.append(f"{given(trial).name} ({last_line(text) or 'no reason given'})")


def given(trial: Any) -> Trial:
    """Our trial, of one of Ray Tune's."""
    return Trial.model_validate(trial.config["trial"])
