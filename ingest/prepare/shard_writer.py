"""Shards: a split's rows as Parquet, cut into row groups and files by their number of interactions.

A row group is gathered from the encoded events only when it is written, so memory holds the log and one shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.arrays.jagged import cut, offsets_of, ranges
from ingest.data.manifest import VERSION, VERSION_KEY, Shard
from ingest.prepare.split import Rows
from ingest.storage import join, open_file

ROWS_AT_ONCE = 1_000_000


def write_shards(
    url: str,
    name: str,
    rows: Rows,
    users: pa.Array,
    events: pa.Table,
    row_group_interactions: int,
    shard_interactions: int,
) -> list[Shard]:
    """Write `rows` below the folder `url` and return what the manifest says of each file.

    `name`: the split and the beginning of the files' names. `users` ascending; `events` sorted by user and time, a
    column each of item, time, duration and features.
    """
    users = users.cast(_narrow_type(users.type))
    groups = list(pairwise(cut(rows.length, min(row_group_interactions, shard_interactions)).tolist()))
    sizes = np.array([int(rows.length[begin:end].sum()) for begin, end in groups])
    shards = []
    for number, (first, last) in enumerate(pairwise(cut(sizes, shard_interactions))):
        path = f"{name}-{number:03d}.parquet"
        content = _shard(rows, users, events, groups[first:last])
        with open_file(join(url, path), "wb") as file:
            file.write(content)
        row_groups = [
            (end - begin, int(size)) for (begin, end), size in zip(groups[first:last], sizes[first:last], strict=True)
        ]
        checksum = hashlib.sha256(content).hexdigest()
        shards.append(Shard(path=path, bytes=content.size, checksum=checksum, row_groups=row_groups))
    return shards


def _shard(rows: Rows, users: pa.Array, events: pa.Table, groups: list[tuple[int, int]]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    for begin, end in groups:
        table = _row_group(rows, users, events, begin, end)
        if writer is None:
            writer = pq.ParquetWriter(
                sink, table.schema, compression="zstd", use_dictionary=False, write_page_checksum=True
            )
        writer.write_table(table, row_group_size=table.num_rows)
    assert writer is not None
    writer.close()
    return sink.getvalue()


def _row_group(rows: Rows, users: pa.Array, events: pa.Table, begin: int, end: int) -> pa.Table:
    length = rows.length[begin:end]
    places = pa.array(ranges(rows.start[begin:end], length))
    offsets = pa.array(offsets_of(length).astype(np.int32))
    columns = {
        "user": pc.take(users, pa.array(rows.user[begin:end])),
        "targets": pa.array(rows.targets[begin:end].astype(np.int32)),
    }
    for name in events.column_names:
        values = pc.take(events[name].chunk(0), places)
        columns[name] = pa.ListArray.from_arrays(offsets, values, type=_list_of(values.type))
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata={VERSION_KEY: str(VERSION)}))


def write_table(url: str, frames: pl.DataFrame | Iterable[pl.DataFrame]) -> None:
    """Write `frames`, of which there is one at least, as one Parquet file; memory holds one of them."""
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for frame in [frames] if isinstance(frames, pl.DataFrame) else frames:
            for part in frame.iter_slices(ROWS_AT_ONCE) if frame.height else [frame]:
                table = _narrow(part.to_arrow(compat_level=pl.CompatLevel.oldest()))
                if writer is None:
                    file = stack.enter_context(open_file(url, "wb"))
                    writer = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writer.write_table(table)


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


def _narrow(table: pa.Table) -> pa.Table:
    """Strings and lists with the 32-bit offsets that a reader expects."""
    return table.cast(pa.schema([(field.name, _narrow_type(field.type)) for field in table.schema]))


def _narrow_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return _list_of(_narrow_type(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind
