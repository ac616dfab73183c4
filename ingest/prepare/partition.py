"""The first pass over a log: its events, checked, go to partitions by their user and are spilled to disk.

A piece of the log (`prepare.survey`) becomes one Arrow file, or several where it is large, with one record batch for
each partition; within a partition events keep the order of the log. Columns with few different strings are written as
dictionaries. Later passes read one partition at a time, so memory depends on its size and not on the log's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.arrow_files import open_arrow
from ingest.data.schema import DataConfig
from ingest.prepare.hashing import hash_ids
from ingest.prepare.log import cast_columns, event_columns, event_sources, events_of
from ingest.prepare.survey import Part, type_of
from ingest.raw.columns import RawFile
from ingest.storage import absolute, is_remote, join, open_file

MOST_WORDS = 4096
"""A column of strings with up to so many different ones in a file is written as a dictionary."""
_BATCH = 262_144


@dataclass(frozen=True)
class Job:
    """What every task of preparing a log has to know."""

    config: DataConfig
    work: str
    """The folder of what is spilled and found on the way."""
    destination: str
    partitions: int = 1
    types: dict[str, str] | None = None
    """The type of each column of the log."""
    last_time: int = 0
    """The time of the log's last event."""
    items: int = 0
    """Training knows the items from `FIRST_VALUE` to before this one."""
    base: dict[str, Any] | None = None
    """The features of the data set that grows, as its manifest has them."""

    def with_changes(self, **changes: Any) -> Job:
        return replace(self, **changes)


def partition_piece(job: Job, task: tuple[int, list[Part]]) -> dict[str, Any]:
    """Spill a piece of the log. Gives the names of the files, the number of events and their first and last time."""
    number, parts = task
    found: dict[str, Any] = {"files": [], "events": 0, "left_out": 0}
    times: list[Any] = []
    for frame in _chunks(job, parts, found):
        name = f"pieces/{number:06d}-{len(found['files']):03d}.arrow"
        _spill(frame, job, join(job.work, name))
        found["files"].append(name)
        found["events"] += frame.height
        times += [frame["time"].min(), frame["time"].max()]
    return found | {"first_time": min(times, default=None), "last_time": max(times, default=None)}


def _chunks(job: Job, parts: list[Part], found: dict[str, Any]) -> Iterator[pl.DataFrame]:
    """The piece's events, `partition_events` of them at a time, without those that `data.until` leaves out."""
    types = {name: type_of(kind) for name, kind in (job.types or {}).items()}
    sources, until = event_sources(job.config), job.config.until_milliseconds
    waiting: list[pl.DataFrame] = []
    height = 0
    for url, first, last, before in parts:
        with RawFile(url, event_columns(job.config)) as file:
            for columns in file.batches(first, last, before, _BATCH):
                frame = cast_columns(events_of(job.config, columns), types, url, sources)
                kept = frame if until is None else frame.filter(pl.col("time") < until)
                found["left_out"] += frame.height - kept.height
                waiting.append(kept)
                height += kept.height
                if height >= job.config.partition_events:
                    yield pl.concat(waiting, rechunk=True)
                    waiting, height = [], 0
    if height:
        yield pl.concat(waiting, rechunk=True)


def partition_of(users: pl.Series, partitions: int) -> NDArray[np.integer]:
    """The partition of each user: by a hash of its id, the same for integers of any width. [N] -> [N]."""
    return (hash_ids(users) % np.uint64(partitions)).astype(np.min_scalar_type(partitions - 1))


def _spill(frame: pl.DataFrame, job: Job, url: str) -> None:
    table = _compact(frame)
    ends = np.array([frame.height])
    if job.partitions > 1:
        partition_N = partition_of(frame["user"], job.partitions)
        table = take(table, np.argsort(partition_N, kind="stable"))
        ends = np.cumsum(np.bincount(partition_N, minlength=job.partitions))
    begin = 0
    with open_file(url, "wb") as file, new_file(file, table.schema) as writer:
        for end in ends.tolist():
            writer.write_batch(one_batch(table, begin, end))
            begin = end


def one_batch(table: pa.Table, begin: int = 0, end: int | None = None) -> pa.RecordBatch:
    """The rows from `begin` to before `end` of a table whose columns are one chunk each."""
    count = (table.num_rows if end is None else end) - begin
    return pa.RecordBatch.from_arrays([c.chunk(0).slice(begin, count) for c in table.columns], schema=table.schema)


def new_file(file: Any, schema: pa.Schema) -> pa.RecordBatchFileWriter:
    """An Arrow file, compressed."""
    return pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))


def write_batch(url: str, table: pa.Table) -> None:
    """Write a table whose columns are one chunk each as an Arrow file of one record batch."""
    with open_file(url, "wb") as file, new_file(file, table.schema) as writer:
        writer.write_batch(one_batch(table))


def read_batch(url: str, number: int, columns: list[str] | None = None) -> pa.RecordBatch:
    """The record batch `number` of the Arrow file `url`, or its `columns` alone."""
    with open_arrow(url) if is_remote(url) else pa.memory_map(absolute(url)) as source:
        options = pa.ipc.IpcReadOptions()
        if columns is not None:
            with pa.ipc.open_file(source) as file:
                options.included_fields = [file.schema.get_field_index(name) for name in columns]
        with pa.ipc.open_file(source, options=options) as file:
            return file.get_batch(number)


def take(table: pa.Table, index: NDArray[np.int64]) -> pa.Table:
    """The rows `index` of a table whose columns are one chunk each."""
    places = pa.array(index)
    arrays = [column.chunk(0).take(places) for column in table.columns]
    return pa.Table.from_arrays(arrays, schema=table.schema)


def _compact(frame: pl.DataFrame) -> pa.Table:
    """The frame as Arrow, a chunk a column, with dictionaries in place of columns of few different strings."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if pa.types.is_large_string(array.type) and name not in ("user", "item"):
            encoded = pc.dictionary_encode(array)
            if len(encoded.dictionary) <= MOST_WORDS:
                array = encoded
        columns[name] = array
    return pa.table(columns)


def read_partition(job: Job, files: list[str], partition: int) -> pa.Table:
    """All events of a partition in the order of the log, a chunk a column."""
    batches = [read_batch(join(job.work, name), partition) for name in files]
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    columns = {}
    for name in tables[0].column_names:
        chunks = [table[name].chunk(0) for table in tables]
        kinds = {chunk.type for chunk in chunks}
        if len(kinds) > 1:
            plain = next(kind for kind in kinds if not pa.types.is_dictionary(kind))
            chunks = [chunk.cast(plain) for chunk in chunks]
        joined = pa.chunked_array(chunks)
        columns[name] = joined.unify_dictionaries().combine_chunks() if chunks else joined
    return pa.table(columns)
