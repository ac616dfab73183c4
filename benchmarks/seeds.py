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

import numpy as np
import polars as pl
import yaml

from embeddings.workers import Worker
from evaluation.metrics import target_values
from evaluation.segments import SegmentSums, segments_of
from evaluation.significance import Differences, compare
from evaluation.targets import paired
from ingest.errors import InputError
from ingest.settings import load_content

_AVERAGED = ("metrics", "intents")
COPY = ".seed-"
"""Between a model's name and the seed of its copy."""


def with_seeds(config: str, overrides: Sequence[str], folder: Path, seeds: int, models: Sequence[str]) -> str:
    """The config, `overrides` laid over it, with a copy of each of `models` for every further seed, as a file in
    `folder`.

    A copy stands behind all models, so that the first stays the first. Raises `InputError` where one of `models` is
    not there.
    """
    content = load_content(config, overrides)
    for name in models:
        if name not in content["models"]:
            raise InputError(f"--models: takes those of the config, {', '.join(content['models'])}; got {name!r}")
        section = content["models"][name]
        first = {**content.get("train", {}), **section.get("train", {})}.get("seed", 0)
        for seed in range(1, seeds):
            train = section.get("train", {}) | {"seed": first + seed}
            content["models"][f"{name}{COPY}{seed}"] = section | {"train": train}
    path = folder / Path(config).name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def together(results: Mapping[str, Any], targets: str, workers: int, resamples: int) -> dict[str, Any]:
    """The models of `results` with their copies as one, and the first model against all others.

    `segments`, where the results have them, are of the means over seeds, those by an intent of what the first seed
    named. `metrics` and `intents` are
    means, `spread` is the lowest and the highest of each metric, `deviation` and
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
    by = {row["by"] for row in results.get("segments", [])}
    control = next((name for name in others if models[name]["kind"] == "deep"), None)
    kinds = segments_of("session" in by, [name for name in models[first]["intents"] if f"intent {name}" in by])
    sums = SegmentSums(kinds, compared, control, metric)
    for rank in range(workers):
        for user_N, ranks, facts in paired(targets, every, Worker(rank, workers)):
            value = {name: sum(target_values(ranks[each], metric) for each in groups[name]) / len(groups[name])
                     for name in compared}  # fmt: skip
            if by:
                sums.add_values(user_N, np.stack([value[name] for name in compared], axis=1), facts)
            for other in others:
                differences[other].add(value[first] - value[other], user_N)
    versus = {other: compare(found, metric, 0).model_dump() for other, found in differences.items()}
    segments = [segment.model_dump() for segment in sums.found([sums.sums], resamples)] if by else []
    return {"models": models, "versus": versus, "segments": segments}


def busiest(results: Mapping[str, Any], targets: str) -> dict[str, Any]:
    """The item that most targets are of, and what each model of `results` has over all others.

    Where it is much of the whole, a mean tells above all where a model puts this one.
    """
    metric = results["protocol"]["metric"]
    names = [name for name, model in results["models"].items() if not model["oracle"]]
    item: Any = None
    share, without = 0.0, dict[str, list[float]]()
    for name in names:
        found = pl.read_parquet(f"{targets}/{name}/*.parquet", columns=["item", "rank"])
        if item is None:
            item, count = (
                found["item"].drop_nulls().value_counts().sort("count", "item", descending=[True, False]).row(0)
            )
            share = count / len(found)
        other = target_values(found.filter(pl.col("item").ne_missing(item))["rank"].to_numpy(), metric)
        without.setdefault(name.partition(COPY)[0], []).append(float(other.mean()) if len(other) else 0.0)
    return {
        "item": str(item),
        "share": share,
        "metric": metric,
        "without": {name: fmean(values) for name, values in without.items()},
    }


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
