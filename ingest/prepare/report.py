"""What a run of preparing tells: the manifest's counts, what is refused or suspicious in them, and the last line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from ingest.data.manifest import SplitName
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.bins import at_ranks
from ingest.features.bins import summary as summarised
from ingest.features.feature import FIRST_VALUE, PreparedFeature
from ingest.features.vocabulary import summed
from ingest.prepare.histories import read_histories
from ingest.prepare.partition import Job

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Counts: TypeAlias = dict[str, int]
Log: TypeAlias = Callable[[str], None]
Results: TypeAlias = list[dict[str, Any]]


def count(config: DataConfig, spilled: Results, histories: Results, known: dict[str, Any]) -> Counts:
    """The manifest's counts, as far as they are there before the item table is made. `known`: what `fit_items` gave."""
    counts: Counts = {}
    if config.until is not None:
        counts["events_left_out_by_until"] = sum(piece["left_out"] for piece in spilled)
    for key in ("duplicates", "dropped_users", "dropped_events", "users", "events", "training_events"):
        counts[key] = sum(part[key] for part in histories)
    counts["items"] = known["size"] - FIRST_VALUE
    counts["items_below_min_count"] = max(known["different"] - counts["items"], 0)
    counts["unknown_training_events"] = known["unknown"]
    for name in SPLITS:
        for key, source in (("rows", "rows"), ("targets", "targets"), ("users_without_target", "without_target")):
            counts[f"{name}_{key}"] = sum(part[source][name] for part in histories)
    counts["rest_rows"] = sum(part["rows"]["rest"] for part in histories)
    counts["users_without_target"] = sum(part["users_without_target"] for part in histories)
    return counts


def refuse_empty_split(job: Job, counts: Counts, first_time: int) -> None:
    """Raise `InputError` where there is nothing to train on, or nothing to evaluate."""
    empty = next((name for name in SPLITS if not counts[f"{name}_rows"]), None)
    if empty is None:
        return
    split = job.config.split
    if split.kind == "leave_one_out":
        reason = "no user has 2, or more than 3, events" if empty == "train" else "no user has 3 events or more"
        raise InputError(f"the {empty} split is empty: {reason}")
    raise InputError(
        f"the {empty} split is empty: no user has events to predict there; the spans are validation "
        f"{split.validation} and test {split.test}, the log goes from {_date(first_time)} to "
        f"{_date(job.last_time)}, 99.9 % of it until {_date(_late_time(job))}"
    )


def _late_time(job: Job) -> int:
    """The time until which 99.9 % of the events are, about."""
    times = (pl.Series(read_histories(job, number, ["time"])["time"]) for number in range(job.partitions))
    counted = summed((time.alias("value").value_counts(name="count").cast(pl.Int64) for time in times), summarised)
    values, _ = at_ranks(counted.sort("value"), 1000)
    return int(values[-1])


def refuse_intents_without_label(features: dict[str, PreparedFeature]) -> None:
    """Raise `InputError` where an intent has no label that could be predicted."""
    for feature in features.values():
        if feature.intent and feature.size == FIRST_VALUE:
            raise InputError(f"intent {feature.name!r} has no value in the training data that comes min_count times")


def warnings_of(config: DataConfig, counts: Counts, labels: dict[str, int]) -> list[str]:
    """What is suspicious, a sentence each. `labels`: how many different ones training targets have, by intent."""
    found = []
    for name in SPLITS:
        unknown, targets = counts[f"unknown_targets_{name}"], counts[f"{name}_targets"]
        if 2 * unknown > targets:
            found.append(f"most {name} targets ({unknown:,} of {targets:,}) are {_unknown_items(name, config)}")
    events, unknown = counts["events"] + counts["dropped_events"], counts["unknown_item_events"]
    if 2 * unknown > events:
        found.append(f"most events ({unknown:,} of {events:,}) have no attributes: the item table lacks their item")
    for intent, number in labels.items():
        if number < 2:
            what = "one label only" if number else "no known label"
            found.append(f"intent {intent!r} has {what} among the training targets: there is nothing to predict")
    return found


def summary(counts: Counts, config: DataConfig) -> str:
    """The counts as a sentence: the main ones, and of all that was dropped or is unknown what is not 0."""
    main = ("users", "events", "items")
    others = [name for name, number in counts.items() if number and name not in main and not name.endswith("_rows")]
    texts = {
        "items_below_min_count": "items below data.min_item_count",
        "unknown_training_events": "training events of items below data.min_item_count",
        "other_items": "other items of the log or the item table",
        "unknown_item_events": "events whose item the item table lacks",
    } | {f"unknown_targets_{name}": f"{name} targets that are {_unknown_items(name, config)}" for name in SPLITS}
    return ", ".join(f"{counts[name]:,} {texts.get(name, name.replace('_', ' '))}" for name in (*main, *others))


def _unknown_items(split: SplitName, config: DataConfig) -> str:
    if split == "train":
        return "items below data.min_item_count"
    if config.min_item_count == 1:
        return "items that training never saw"
    return f"items that training saw less than {config.min_item_count} times (data.min_item_count)"


def _date(milliseconds: int) -> str:
    return str(np.datetime64(milliseconds, "ms").astype("datetime64[m]"))
