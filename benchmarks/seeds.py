"""Models trained with several seeds in one run: a copy of each for every further seed, and what all say together.

A model's metrics are means over its seeds. A comparison takes, at each target, the mean over the seeds of one model
less that of the other, paired over users: what is left to luck is which users there are, and the spread tells how much
a seed does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from embeddings.workers import Worker
from evaluation.metrics import target_values
from evaluation.significance import Differences, compare
from evaluation.targets import paired

_AVERAGED = ("metrics", "intents")
COPY = ".seed-"
"""Between a model's name and the seed of its copy."""


def with_seeds(config: str, folder: Path, seeds: int, models: Sequence[str]) -> str:
    """The config with a copy of each of `models` for every further seed, as a file in `folder`.

    A copy stands behind all models, so that the first stays the first.
    """
    content = yaml.safe_load(Path(config).read_text())
    first = content.get("train", {}).get("seed", 0)
    for name in models:
        section = content["models"][name]
        for seed in range(1, seeds):
            train = section.get("train", {}) | {"seed": first + seed}
            content["models"][f"{name}{COPY}{seed}"] = section | {"train": train}
    path = folder / Path(config).name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def together(results: Mapping[str, Any], targets: str, workers: int, resamples: int) -> dict[str, Any]:
    """The models of `results` with their copies as one, and the first model against all others.

    `metrics` and `intents` are means, `spread` is the lowest and the highest of each metric, `deviation` and
    `intents_deviation` the standard deviations of a seed; the last three are None of one seed. `targets`: the folder of
    the run's targets.
    """
    groups: dict[str, list[str]] = {}
    for name in results["models"]:
        groups.setdefault(name.partition(COPY)[0], []).append(name)
    models = {name: _mean([results["models"][each] for each in group]) for name, group in groups.items()}
    compared = [name for name in groups if not models[name]["oracle"]]
    first, *others = compared
    metric = results["protocol"]["metric"]
    differences = {other: Differences(resamples) for other in others}
    every = [each for name in compared for each in groups[name]]
    for rank in range(workers):
        for user_N, ranks, _ in paired(targets, every, Worker(rank, workers)):
            value = {name: sum(target_values(ranks[each], metric) for each in groups[name]) / len(groups[name])
                     for name in compared}  # fmt: skip
            for other in others:
                differences[other].add(value[first] - value[other], user_N)
    versus = {other: compare(found, metric, 0).model_dump() for other, found in differences.items()}
    return {"models": models, "versus": versus}


def _mean(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The models of one group."""
    metrics, intents = ({name: [each[of][name] for each in found] for name in found[0][of]} for of in _AVERAGED)
    several = len(found) > 1
    return {
        **found[0],
        "metrics": {name: fmean(values) for name, values in metrics.items()},
        "intents": {name: fmean(values) for name, values in intents.items()},
        "spread": {name: (min(values), max(values)) for name, values in metrics.items()} if several else None,
        "deviation": {name: stdev(values) for name, values in metrics.items()} if several else None,
        "intents_deviation": {name: stdev(values) for name, values in intents.items()} if several else None,
        "seeds": len(found),
    }
