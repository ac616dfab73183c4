"""The third pass over a log: each partition's histories become shards of indices and numbers.

Before it, where bins are to hold equal parts of the data, `observe` writes the values that they are cut by, and
`count_digits` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ingest.data.manifest import PreparedFeature
from ingest.data.schema import UNKNOWN, Feature
from ingest.prepare.fit import vocabulary_of
from ingest.prepare.histories import ITEM, read_histories, read_users
from ingest.prepare.item_table import ages
from ingest.prepare.partition import Job, read_batch, write_batch
from ingest.prepare.shard_writer import encoded_log, write_shards
from ingest.prepare.split import SplitLog, split_log, targets_where
from ingest.prepare.statistics import digits, sortable
from ingest.prepare.vocabulary import bin_index, encode_lists, look_up, scaled
from ingest.storage import join


@dataclass(frozen=True)
class _Partition:
    """A partition's events with its split."""

    job: Job
    events: pa.RecordBatch
    users: pa.Array
    split: SplitLog

    @classmethod
    def read(cls, job: Job, number: int) -> _Partition:
        events = read_histories(job, number)
        users, lengths = read_users(job, number)
        split = split_log(job.config.split, events["time"].to_numpy(), lengths, job.last_time)
        return cls(job, events, users, split)

    def items(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The index of each different item, and which of them each event has: [I], [N]."""
        item = self.events[ITEM]
        index_I = look_up(vocabulary_of(self.job, ITEM), _series(item.dictionary))
        return index_I, item.indices.to_numpy()

    def training(self) -> NDArray[np.int64]:
        """The places of the training events."""
        return np.flatnonzero(self.split.training)

    def values(self, feature: Feature, index_I: NDArray, code_N: NDArray) -> pl.Series:
        """What the bins of a feature are of, at each event."""
        if feature.of == "item":
            return ages(self.job, feature, index_I, code_N, self.events["time"].to_numpy())
        return _series(self.events[feature.name])


def _series(array: pa.Array) -> pl.Series:
    found = pl.from_arrow(array)
    assert isinstance(found, pl.Series)
    return found


def waits_for_ages(feature: Feature) -> bool:
    """Whether bins depend on every event: their edges, or how many events each has."""
    return feature.kind == "elapsed" or (feature.of == "event" and feature.kind == "number" and not feature.is_number)


def observe(job: Job, task: tuple[int, list[str]]) -> dict[str, Any]:
    """Write the training events' values of some features, for the search of their quantiles; gives the smallest."""
    number, names = task
    partition = _Partition.read(job, number)
    index_I, code_N = partition.items()
    training = partition.training()
    columns: dict[str, pa.Array] = {}
    smallest: dict[str, float | None] = {}
    for feature in job.config.features:
        if feature.name in names:
            values = partition.values(feature, index_I, code_N).gather(training)
            columns[feature.name], smallest[feature.name] = values.to_arrow(), values.min()  # type: ignore[assignment]
    write_batch(join(job.work, f"observed/{number:06d}.arrow"), pa.table(columns))
    return {"smallest": smallest}


def count_digits(job: Job, task: tuple[str, str, list[int], int]) -> dict[str, Any]:
    """One pass of a quantile's search over one partition's file: see `ingest.prepare.statistics.select`."""
    file, column, prefixes, done = task
    values = read_batch(join(job.work, file), 0, [column])[column]
    return digits(sortable(values), prefixes, done)


def encode_partition(job: Job, task: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    """Write a partition's shards. `task`: its number, and every feature as the manifest will have it."""
    number, described = task
    features = {name: PreparedFeature.model_validate(found) for name, found in described.items()}
    partition = _Partition.read(job, number)
    index_I, code_N = partition.items()
    training = partition.training()
    columns: dict[str, pa.Array] = {"item": pa.array(index_I[code_N]), "time": partition.events["time"]}
    bins: dict[str, list[int]] = {}
    if job.config.duration:
        columns["duration"] = partition.events["duration"].cast(pa.float32())
    for feature in job.config.features:
        found = features[feature.name]
        if waits_for_ages(feature):
            index_N = bin_index(partition.values(feature, index_I, code_N), found.edges)
            bins[feature.name] = np.bincount(index_N.to_numpy()[training], minlength=found.size).tolist()
            if feature.of == "event":
                columns[feature.name] = index_N.to_arrow()
        elif feature.of == "event":
            columns[feature.name] = _encoded(job, feature, found, partition.events[feature.name])
    log = encoded_log(partition.users, columns)
    unknown_N = index_I[code_N] == UNKNOWN
    shards = {
        name: [
            shard.model_dump()
            for shard in write_shards(
                job.destination,
                f"{name}/part-{number:05d}",
                rows,
                log,
                job.config.row_group_interactions,
                job.config.shard_interactions,
            )
        ]
        for name, rows in partition.split.rows.items()
    }
    unknown = {name: targets_where(rows, unknown_N) for name, rows in partition.split.rows.items()}
    return {"shards": shards, "bins": bins, "unknown_targets": unknown}


def _encoded(job: Job, feature: Feature, found: PreparedFeature, column: pa.Array) -> pa.Array:
    if feature.is_number:
        return scaled(_series(column), found).to_arrow()
    values = column.values if feature.kind == "categories" else column
    index = look_up(vocabulary_of(job, feature.name), _series(values.dictionary))
    code = values.indices.fill_null(len(index)).to_numpy()
    encoded = np.append(index, np.int32(UNKNOWN))[code]
    if feature.kind == "category":
        return pa.array(encoded)
    offsets = column.offsets.to_numpy()
    return encode_lists(offsets - offsets[0], encoded[offsets[0] : offsets[-1]])
