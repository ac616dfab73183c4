"""The second pass over a log: each partition's events become its users' histories, oldest first, and are counted.

Spilled for the third pass (`prepare.encode`): `histories/<partition>.arrow` has the events sorted by user and time,
items as a dictionary; `users/<partition>.arrow` the users and how many events each has. Counted over the training
events: items, and what each feature's kind learns from (`counts/<name>/<partition>.parquet`). Of items there are also
the events of all splits, and when they began.

N  events     U  users
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.features.feature import kind_of
from ingest.features.number import Moments
from ingest.prepare.log import event_features
from ingest.prepare.partition import Job, read_batch, read_partition, take, write_batch
from ingest.prepare.shard_writer import write_table
from ingest.prepare.split import SplitLog, split_log
from ingest.storage import join

ITEM = "item"
NEVER = int(np.iinfo(np.int64).max)
"""In counts, the first time of what does not come."""


def build_histories(job: Job, task: tuple[int, list[str]]) -> dict[str, Any]:
    """Sort, drop and count one partition, the pieces of which lie in the given files."""
    partition, files = task
    events = read_partition(job, files, partition)
    user_U, user_N = _users(events["user"].chunk(0))
    order_N = np.lexsort((events["time"].to_numpy(), user_N))  # events of equal times keep the order of the log
    user_N, events = user_N[order_N], take(events.drop(["user"]), order_N)
    item = pc.dictionary_encode(events[ITEM].chunk(0))
    total_I = np.bincount(item.indices.to_numpy(), minlength=len(item.dictionary))
    kept_N, counts = _kept(job, user_N, events)
    if not kept_N.all():
        events = take(events, np.flatnonzero(kept_N))
        item = item.filter(pa.array(kept_N))
        user_N = user_N[kept_N]
    for feature in event_features(job.config):
        if not kind_of(feature).columns(feature):
            events = events.append_column(feature.name, kind_of(feature).derive(user_N, item.indices.to_numpy()))
    length_U = np.bincount(user_N, minlength=len(user_U))
    user_U, length_U = user_U.filter(pa.array(length_U > 0)), length_U[length_U > 0]
    events = _compact(job, events.set_column(events.column_names.index(ITEM), ITEM, item))
    split = split_log(job.config.split, events["time"].to_numpy(), length_U, job.last_time)
    write_batch(join(job.work, f"histories/{partition:06d}.arrow"), events)
    users = pa.table({"user": user_U, "length": pa.array(length_U)})
    write_batch(join(job.work, f"users/{partition:06d}.arrow"), users)
    training = take(events, np.flatnonzero(split.training))
    _write_counts(job, partition, events, training, total_I)
    return counts | _summary(job, split, training, length_U)


def read_histories(job: Job, partition: int, columns: list[str] | None = None) -> pa.RecordBatch:
    """The events of a partition, or their `columns` alone, as this pass left them."""
    return read_batch(join(job.work, f"histories/{partition:06d}.arrow"), 0, columns)


def read_users(job: Job, partition: int) -> tuple[pa.Array, NDArray[np.int64]]:
    """The partition's users, ascending, and how many events each has: [U], [U]."""
    batch = read_batch(join(job.work, f"users/{partition:06d}.arrow"), 0)
    return batch["user"], batch["length"].to_numpy()


def _users(users: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """The different users, ascending, and the place of each event's user among them: [U], [N]."""
    encoded = pc.dictionary_encode(users)
    order_U = pc.sort_indices(encoded.dictionary)
    place_U = np.empty(len(order_U), dtype=np.int64)
    place_U[order_U.to_numpy()] = np.arange(len(order_U))
    return encoded.dictionary.take(order_U), place_U[encoded.indices.to_numpy()]


def _kept(job: Job, user_N: NDArray[np.int64], events: pa.Table) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which of the sorted events stay: duplicates and users with few events go as the config says."""
    kept_N = np.ones(len(user_N), dtype=bool)
    duplicate_N = _duplicates(user_N, events)
    if job.config.duplicates == "drop":
        kept_N[duplicate_N] = False
    length_U = np.bincount(user_N[kept_N], minlength=int(user_N.max(initial=-1)) + 1)
    rare_U = length_U < job.config.min_user_events
    counts = {
        "duplicates": len(duplicate_N),
        "dropped_users": int(rare_U.sum()),
        "dropped_events": int(length_U[rare_U].sum()),
    }
    return kept_N & ~rare_U[user_N], counts


PLACE = "_place"
"""A column that no feature is called like, as their names begin with a letter."""


def _duplicates(user_N: NDArray[np.int64], events: pa.Table) -> NDArray[np.int64]:
    """The events that agree with one before in every column: only those with the same user and time can."""
    time_N = events["time"].to_numpy()
    tied_N = np.zeros(len(user_N), dtype=bool)
    equal = (user_N[1:] == user_N[:-1]) & (time_N[1:] == time_N[:-1])
    tied_N[1:] |= equal
    tied_N[:-1] |= equal
    places = np.flatnonzero(tied_N)
    rows = pl.from_arrow(take(events, places))
    assert isinstance(rows, pl.DataFrame)
    rows = rows.with_columns(pl.Series("user", user_N[places]), pl.Series(PLACE, places))
    first = rows.unique(subset=[name for name in rows.columns if name != PLACE], keep="first")[PLACE].to_numpy()
    return np.setdiff1d(places, first, assume_unique=True)


def _compact(job: Job, events: pa.Table) -> pa.Table:
    """The features' values as they are kept until they are encoded."""
    columns = {name: column.combine_chunks() for name, column in zip(events.column_names, events.columns, strict=True)}
    for feature in event_features(job.config):
        column = columns[feature.name]
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        columns[feature.name] = kind_of(feature).compact(column)
    return pa.table(columns)


def counts_of(name: str, partition: int) -> str:
    """The file of a partition's counts, in the folder of work."""
    return f"counts/{name}/{partition:06d}.parquet"


def _write_counts(job: Job, partition: int, events: pa.Table, training: pa.Table, total_I: NDArray[np.int64]) -> None:
    item = training[ITEM].chunk(0)
    items = {
        "value": item.dictionary,
        "count": np.bincount(item.indices.to_numpy(), minlength=len(item.dictionary)),
        "total": total_I,
        "first": _first_times(training),
        "appeared": _first_times(events),
    }
    write_table(join(job.work, counts_of(ITEM, partition)), pl.DataFrame(pa.table(items)))
    for feature in event_features(job.config):
        if kind_of(feature).learns(feature):
            counted = kind_of(feature).count(feature, training[feature.name].chunk(0))
            write_table(join(job.work, counts_of(feature.name, partition)), counted)


def _first_times(events: pa.Table) -> NDArray[np.int64]:
    """The time of the first of the events of each item of the dictionary; `NEVER` where there is none."""
    item = events[ITEM].chunk(0)
    first_I = np.full(len(item.dictionary), NEVER)
    np.minimum.at(first_I, item.indices.to_numpy(), events["time"].to_numpy())
    return first_I


def _summary(job: Job, split: SplitLog, training: pa.Table, length_U: NDArray[np.int64]) -> dict[str, Any]:
    """What the manifest and the later passes have to know of the partition."""
    time = training["time"].to_numpy()
    in_a_row = np.concatenate([rows.user for name, rows in split.rows.items() if name != "rest"])
    return {
        "users": len(length_U),
        "events": int(length_U.sum()),
        "training_events": training.num_rows,
        "first_time": int(time.min()) if len(time) else None,
        "last_time": int(time.max()) if len(time) else None,
        "duration": asdict(Moments.of(training["duration"].to_numpy())) if job.config.duration else None,
        "rows": {name: len(rows) for name, rows in split.rows.items()},
        "targets": {name: int(rows.targets.sum()) for name, rows in split.rows.items()},
        "without_target": split.without_target,
        "users_without_target": len(length_U) - len(np.unique(in_a_row)),
    }
