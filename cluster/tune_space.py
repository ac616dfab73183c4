"""The trials of a config's section `tune`: what each sets, checked before any of them starts. Imports no Ray."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable
from typing import Any

from cluster.config import Config
from cluster.tune_config import RangeConfig, TuneConfig
from ingest.data.manifest import load_manifest
from ingest.errors import InputError
from ingest.settings import Record, build_settings, set_key
from trainer.progress import identity


class Trial(Record):
    """One training of `model` with `settings`, keys of its section such as train.learning_rate; 0 has none."""

    model: str
    number: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.model}-{self.number}"


def section(config: Config) -> TuneConfig:
    """The section `tune`; `InputError` where there is none, or no model to tune."""
    if config.tune is None:
        raise InputError("tune: the config has no such section: it names the models, the keys and the values to try")
    if not config.tuned:
        raise InputError("tune.models: no model of the config is trained")
    return config.tune


def trials_of(config: Config) -> list[Trial]:
    """All trials, the models in turns. A greater `tune.trials` adds to them and changes none."""
    tune, settings = section(config), {}
    for model in config.tuned:
        generator, ranges = random.Random(f"{tune.seed} {model}"), space_of(config, model)
        drawn = [{key: found.draw(generator) for key, (_, found) in ranges.items()} for _ in range(1, tune.trials)]
        settings[model] = [{}, *drawn]
    return [
        Trial(model=model, number=number, settings=settings[model][number])
        for number in range(tune.trials)
        for model in config.tuned
    ]


def space_of(config: Config, model: str) -> dict[str, tuple[str, RangeConfig]]:
    """By key of the model's section: the key as the config has it, and its values."""
    tune, found = section(config), {}
    for key, values in tune.space.items():
        if key.startswith("train."):
            found[key] = key, values
        elif key.startswith("model."):
            found[key.removeprefix("model.")] = key, values
    for key, values in tune.space.items():
        if key.startswith(f"models.{model}."):
            found[key.removeprefix(f"models.{model}.")] = key, values
    return found


def check_space(config: Config) -> None:
    """Raises `InputError` with the key of `tune.space` that a model does not have, or whose value it does not take."""
    tune = section(config)
    taken = {"metric": "trials are compared by it", "keep": "a trial keeps one checkpoint"}
    taken |= {"epochs": "tune.epochs says it"} if tune.epochs is not None else {}
    for key in tune.space:
        head, _, last = key.rpartition(".")
        if last in taken and head.rpartition(".")[2] == "train":
            raise InputError(f"tune.space: takes no {key}: {taken[last]}")
        if not key.startswith(("train.", "model.", *(f"models.{name}." for name in config.tuned))):
            raise InputError(
                f"tune.space: takes train.<key>, model.<key> and models.<name>.<key>, the name one of "
                f"{', '.join(config.tuned)}; got {key!r}"
            )
    for model in config.tuned:
        for inner, (key, values) in space_of(config, model).items():
            for value in values.ends():
                trial = Trial(model=model, number=1, settings={inner: value})
                configured(config, trial, f"tune.space: {key} = {value!r}")


def configured(config: Config, trial: Trial, source: str) -> Config:
    """The config with what the trial sets; `source` is the name that an error gives for where it came from."""
    tune, content = section(config), config.model_dump(mode="json", by_alias=True, exclude={"tune"})
    own = content["models"][trial.model]
    for key, value in bounded(tune, trial.settings).items():
        put(own, key, value)
    return build_settings(Config, content, source)


def bounded(tune: TuneConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trial with the most epochs, and with few checkpoints."""
    return settings | {"train.keep": 1} | ({} if tune.epochs is None else {"train.epochs": tune.epochs})


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set `key.sub` in `content`, in place, to a copy of the value, which other trials have, too."""
    set_key(content, key, copy.deepcopy(value), f"tune.space: {key}")


def asked(config: Config) -> dict[str, Any]:
    """What the outcome of trials depends on, as JSON gives it back. More trials change none of those that are there."""
    tune, fingerprint = section(config), load_manifest(config.data_folder).fingerprint
    models = {name: identity(config.neural[name], config.train_config(name), fingerprint) for name in config.tuned}
    content = {
        "tune": tune.model_dump(
            mode="json", by_alias=True, exclude={"models", "trials", "at_once", "cpus_per_trial", "gpus_per_trial"}
        ),
        "evaluate": {"filter_seen": config.evaluate.filter_seen},
        "models": models,
    }
    return dict(json.loads(json.dumps(content)))


def overrides(trials: Iterable[Trial]) -> dict[str, Any]:
    """What the trials set, as a config would have it."""
    content: dict[str, Any] = {}
    for trial in trials:
        for key, value in trial.settings.items():
            put(content.setdefault("models", {}).setdefault(trial.model, {}), key, value)
    return content
