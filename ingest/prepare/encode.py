"""The third pass over a log: each partition's histories become shards of indices and numbers.

Before it, `count_ages` counts what depends on both an item and the time of an event. Besides shards, a partition leaves
how often its labels come (`labels/<partition>.parquet`), which item follows which, and when each was taken
(`prepare.pairs`).

N  events
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Column, Integers, Jagged, ranges
from ingest.arrow_files import open_arrow
from ingest.features.feature import FIRST_VALUE, UNKNOWN, Feature, PreparedFeature, kind_of
from ingest.features.vocabulary import look_up, read_parts
from ingest.prepare.fit import feature_of, vocabulary_of
from ingest.prepare.histories import ITEM, counts_of, read_histories, read_users
from ingest.prepare.item_table import ITEMS
from ingest.prepare.pairs import pairs_of, spill_activity, spill_successions, spill_transitions
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_shards, write_table
from ingest.prepare.split import SplitLog, split_log, targets_where
from ingest.storage import join


@dataclass(frozen=True)
class _Partition:
    job: Job
    events: pa.RecordBatch
    users: pa.Array
    split: SplitLog
    index_N: NDArray[np.int32]
    """Of each event's item."""
    known_N: NDArray[np.bool_]
    """Whether training knows it."""

    @classmethod
    def read(cls, job: Job, number: int) -> _Partition:
        events = read_histories(job, number)
        users, lengths = read_users(job, number)
        split = split_log(job.config.split, events["time"].to_numpy(), lengths, job.last_time)
        index_I = look_up(vocabulary_of(job, ITEM), pl.Series(events[ITEM].dictionary))
        index_N = index_I[events[ITEM].indices.to_numpy()]
        return cls(job, events, users, split, index_N, (index_N >= FIRST_VALUE) & (index_N < job.items))

    @functools.cached_property
    def training(self) -> Integers:
        """The places of the training events."""
        return np.flatnonzero(self.split.training)

    @functools.cached_property
    def training_targets(self) -> Integers:
        """The places of the training events but each user's first."""
        rows = self.split.rows["train"]
        return ranges(rows.start + rows.length - rows.targets, rows.targets)

    @property
    def again(self) -> NDArray[np.bool_]:
        """Which events are not their user's first."""
        again_N = np.ones(len(self.index_N), dtype=bool)
        for name in ("test", "rest"):  # every user is in one of them
            again_N[self.split.rows[name].start] = False
        return again_N

    def of_items(self, feature: Feature) -> pa.Array:
        """What the item table has of each item."""
        with open_arrow(join(self.job.work, ITEMS)) as file:
            return pq.read_table(file, columns=[feature.name])[feature.name].combine_chunks()

    def encoded(self, feature: Feature, found: PreparedFeature) -> pa.Array:
        """An event feature as the shards have it: [N]."""
        vocabulary = functools.partial(look_up, vocabulary_of(self.job, feature.name))
        return kind_of(feature).encode(found, self.events[feature.name], vocabulary)

    @functools.cached_property
    def learned_N(self) -> NDArray[np.int32]:
        """The items from which is learned: those that training does not know are one unknown item."""
        return np.where(self.known_N, self.index_N, np.int32(UNKNOWN))

    def seen(self, found: PreparedFeature, values: Column, index_N: NDArray[np.int32], places: Integers) -> Column:
        """A feature as a batch has it at `places`.

        `values`: of each event, or of each item, where events have the items `index_N`.
        """
        if found.of == "event":
            return values.take(places)
        return kind_of(found).at_event(found, values.take(index_N[places]), self.events["time"].to_numpy()[places])


def count_ages(job: Job, task: tuple[int, list[str]]) -> dict[str, Any]:
    """Count what the training events see of item features that depend on their time, so that these can be fitted."""
    number, names = task
    partition = _Partition.read(job, number)
    time = pl.Series(partition.events["time"])
    for feature in (feature_of(job, name) for name in names):
        since = pl.Series(partition.of_items(feature)).gather(partition.learned_N)
        seen = kind_of(feature).seen_at(since, time).gather(partition.training)
        counted = kind_of(feature).count(feature, seen.to_arrow())
        write_table(join(job.work, counts_of(feature.name, number)), counted)
    return {}


def encode_partition(job: Job, task: tuple[int, dict[str, Any], list[int]]) -> dict[str, Any]:
    """Write a partition's shards. `task`: its number, every feature as the manifest will have it, ranges of items."""
    number, described, begins = task
    features = {name: PreparedFeature.model_validate(found) for name, found in described.items()}
    partition = _Partition.read(job, number)
    index_N = partition.index_N
    columns: dict[str, pa.Array] = {"item": pa.array(index_N), "time": partition.events["time"]}
    if job.config.duration:
        columns["duration"] = partition.events["duration"].cast(pa.float32())
    labels = []
    for feature in job.config.features:
        found = features[feature.name]
        if feature.of == "event":
            columns[feature.name] = partition.encoded(feature, found)
        if is_counted(found):
            event = feature.of == "event"
            values = _loaded(columns[feature.name]) if event else kind_of(found).load(partition.of_items(feature))
            labels.append(_counted(partition, found, values))
    if labels:
        write_table(_labels_of(job, number), pl.concat(labels))
    targets = partition.training_targets
    pairs = targets[partition.known_N[targets] & partition.known_N[targets - 1]]
    spill_transitions(job, number, index_N[pairs - 1], index_N[pairs], begins)
    if "activity" in pairs_of(job.config):
        time_N = partition.events["time"].to_numpy()
        training_N = partition.split.training
        asked = [feature.name for feature in job.config.features if feature.at_request]
        values_at = {name: columns[name].to_numpy(zero_copy_only=False) for name in asked}
        spill_activity(job, number, index_N, time_N, training_N, values_at, begins)
        spill_successions(job, number, index_N, time_N, training_N, partition.again, begins)
    sizes = job.config.row_group_interactions, job.config.shard_interactions
    shards = {
        name: write_shards(
            job.destination, f"{name}/part-{number:05d}", rows, partition.users, pa.table(columns), *sizes
        )
        for name, rows in partition.split.rows.items()
    }
    unknown = {name: targets_where(rows, ~partition.known_N) for name, rows in partition.split.rows.items()}
    dumped = {name: [shard.model_dump() for shard in written] for name, written in shards.items()}
    return {"shards": dumped, "unknown_targets": unknown}


def _labels_of(job: Job, partition: int) -> str:
    return join(job.work, f"labels/{partition:06d}.parquet")


def _loaded(column: pa.Array) -> Column:
    return Jagged.from_arrow(column) if pa.types.is_list(column.type) else column.to_numpy(zero_copy_only=False)


def _counted(partition: _Partition, found: PreparedFeature, values: Column) -> pl.DataFrame:
    """How often each index of a feature comes among the training events, and among the training targets.

    `values`: of each event, or of each item. As everything that is learned, the events' bins are counted without
    attributes of items that training does not know; the targets' labels are those that a batch has.
    """
    counts = {}
    for name, places, index_N in (
        ("events", partition.training, partition.learned_N),
        ("targets", partition.training_targets, partition.index_N),
    ):
        seen = partition.seen(found, values, index_N, places)
        counts[name] = np.bincount(seen.values if isinstance(seen, Jagged) else seen, minlength=found.size)
    frame = pl.DataFrame({"feature": found.name, "index": np.arange(found.size), **counts})
    return frame.filter((pl.col("events") > 0) | (pl.col("targets") > 0))


def is_counted(found: PreparedFeature) -> bool:
    """Whether the labels of a feature are counted while events are encoded."""
    return found.intent or kind_of(found).in_bins(found)


def sum_labels(job: Job, described: dict[str, Any]) -> dict[str, Any]:
    """Of the counted features `described`: how often each bin comes among all training events; each intent's most
    common known label among their targets, and how many different ones there are."""
    features = [PreparedFeature.model_validate(found) for found in described.values()]
    sums = {feature.name: np.zeros((2, feature.size), np.int64) for feature in features}
    for number in range(job.partitions if features else 0):
        for part in read_parts(_labels_of(job, number)):
            for (name,), counted in part.group_by("feature"):
                sums[str(name)][:, counted["index"].to_numpy()] += counted["events", "targets"].to_numpy().T
    known = {feature.name: sums[feature.name][1, FIRST_VALUE:] for feature in features if feature.intent}
    return {
        "bins": {f.name: sums[f.name][0].tolist() for f in features if kind_of(f).in_bins(f)},
        "majority": {name: FIRST_VALUE + int(count.argmax()) for name, count in known.items()},
        "different": {name: int((count > 0).sum()) for name, count in known.items()},
    }
