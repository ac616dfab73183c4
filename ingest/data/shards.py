"""Row groups of a split's shards, read from local disk or an object store, and checked.

Storage that answers late or not at all is asked again (`storage.patiently`); what arrives and is not what the manifest
promises is a `DamagedShardError` that names shard, row group, column and value. Indices out of range and lists of
unequal length never reach a table: TorchRec would silently read another row.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Jagged
from ingest.data.batch import Rows
from ingest.data.manifest import VERSION, VERSION_KEY, Manifest, Shard
from ingest.errors import DamagedShardError
from ingest.storage import arrow_filesystem, is_remote, join, patiently

MOST_OPEN = 1024


@dataclass(frozen=True)
class Skipped:
    """A row group that was set aside."""

    path: str
    row_group: int
    rows: int
    reason: str


@dataclass(frozen=True)
class Damaged:
    """A row group that is not what the manifest says."""

    shard: int
    group: int
    error: DamagedShardError


class Shards:
    """The shards of one split in the folder `url`."""

    def __init__(
        self, url: str, manifest: Manifest, shards: list[Shard], columns: list[str], retry_seconds: float
    ) -> None:
        self.url, self.manifest, self.shards, self.columns = url, manifest, shards, columns
        self.retry_seconds = retry_seconds
        self.types = self._types()
        self.opened: dict[int, tuple[pa.NativeFile | None, pq.FileMetaData]] = {}
        self.lock = threading.Lock()
        self.nested = {feature.name for feature in manifest.features if feature.of == "event"
                       and feature.kind == "categories"}  # fmt: skip
        self.sizes = {feature.name: feature.size for feature in manifest.features if not feature.is_number}
        self.sizes["item"] = manifest.items

    def _types(self) -> dict[str, pa.DataType]:
        """What the data contract says of the columns; `user` has the log's own type."""
        types = {"targets": pa.int32(), "item": pa.list_(pa.int32()), "time": pa.list_(pa.int64())}
        types["duration"] = pa.list_(pa.float32())
        for feature in self.manifest.features:
            value = pa.float32() if feature.is_number else pa.int32()
            types[feature.name] = pa.list_(pa.list_(value) if feature.kind == "categories" else value)
        return types

    def path(self, shard: int) -> str:
        return join(self.url, self.shards[shard].path)

    def read(self, shard: int, groups: Sequence[int]) -> list[Rows | Damaged]:
        """Consecutive row groups, together where all are whole, in one request of an object store.

        Where one is damaged they are read one by one. Raises `InputError` where the storage does not answer.
        """
        try:
            return [self._read(shard, groups)]
        except DamagedShardError as error:
            if len(groups) == 1:
                return [Damaged(shard, groups[0], error)]
        return [rows for group in groups for rows in self.read(shard, [group])]

    def _read(self, shard: int, groups: Sequence[int]) -> Rows:
        where = f"{self.path(shard)}: row group {groups[0]}"
        try:
            with self._open(shard) as file:
                if groups[-1] >= file.num_row_groups:
                    raise DamagedShardError(f"{where}: there are only {file.num_row_groups}")
                table = file.read_row_groups(list(groups), columns=self.columns, use_threads=False)
        except FileNotFoundError:
            raise DamagedShardError(f"{self.path(shard)}: this shard of the manifest is not there") from None
        except (pa.ArrowException, OSError) as error:
            raise DamagedShardError(f"{where} is damaged: {' '.join(str(error).split())}") from error
        sizes = [self.shards[shard].row_groups[group] for group in groups]
        return self._rows(table, (sum(rows for rows, _ in sizes), sum(count for _, count in sizes)), where)

    def user_type(self) -> pa.DataType:
        """The Arrow type of the log's own user ids; there must be a shard."""
        with self._open(0) as file:
            return file.schema_arrow.field("user").type

    def _open(self, shard: int) -> pq.ParquetFile:
        """A shard; it is opened and its footer read and checked once, while it is among the `MOST_OPEN` last ones."""
        url = self.path(shard)
        handle, footer = self.opened.get(shard, (None, None))
        source: Any = url.removeprefix("file://")
        if is_remote(url):
            handle = handle or patiently(lambda: _handle(url), url, self.retry_seconds)
            self._check_size(handle, shard)
            source = _PatientFile(handle, url, self.retry_seconds)
        file = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True, pre_buffer=is_remote(url))
        if footer is None:
            self._check_schema(file.schema_arrow, url)
            with self.lock:
                while len(self.opened) >= MOST_OPEN:
                    del self.opened[next(iter(self.opened))]
                self.opened[shard] = (handle, file.metadata)
        return file

    def _check_size(self, handle: pa.NativeFile, shard: int) -> None:
        found, expected = handle.size(), self.shards[shard].bytes
        if found != expected:
            raise DamagedShardError(f"{self.path(shard)}: has {found} bytes, the manifest says {expected}")

    def _check_schema(self, schema: pa.Schema, path: str) -> None:
        version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode()
        if version != str(VERSION):
            raise DamagedShardError(f"{path}: is a shard of schema version {version}; this release reads {VERSION}")
        missing = set(self.columns) - set(schema.names)
        if missing:
            raise DamagedShardError(f"{path}: column {min(missing)!r} is missing, there are {', '.join(schema.names)}")
        for name in self.columns:
            found, expected = schema.field(name).type, self.types.get(name)
            if expected is not None and _plain(found) != expected:
                raise DamagedShardError(f"{path}: column {name!r} is {found}, it has to be {expected}")

    def _rows(self, table: pa.Table, expected: tuple[int, int], where: str) -> Rows:
        """The table's columns, each checked, without a copy."""
        arrays = {name: table[name].combine_chunks() for name in table.column_names}
        for name, array in arrays.items():
            if array.null_count:
                raise DamagedShardError(f"{where}: column {name!r} has no value in {array.null_count} rows")
        item = Jagged.from_arrow(arrays["item"])
        if (len(item), len(item.values)) != tuple(expected):
            raise DamagedShardError(
                f"{where}: has {len(item)} rows and {len(item.values)} interactions, the manifest says {expected[0]} "
                f"and {expected[1]}"
            )
        rows = Rows(
            arrays["user"].to_pylist() if "user" in arrays else [],
            arrays["targets"].to_numpy().astype(np.int64),
            {},
            {},
        )
        self._check_targets(rows.targets, item.lengths, where)
        for name in self.columns:
            if name in ("user", "targets"):
                continue
            lists = Jagged.from_arrow(arrays[name]) if name not in self.nested else _lists_of(arrays[name])
            if not np.array_equal(lists.offsets, item.offsets):
                row = int(np.flatnonzero(lists.lengths != item.lengths)[0])
                raise DamagedShardError(
                    f"{where}, row {row}: column {name!r} has {lists.lengths[row]} values, column 'item' has "
                    f"{item.lengths[row]}"
                )
            values = arrays[name].flatten()
            if name in self.nested:
                rows.nested[name] = Jagged.from_arrow(values)
                self._check_values(name, values.flatten(), None, where)
            else:
                rows.columns[name] = lists
                self._check_values(name, values, lists, where)
        return rows

    def _check_values(self, name: str, array: pa.Array, lists: Jagged | None, where: str) -> None:
        """`lists`: the rows that they are of, where one value is one interaction's."""
        if array.null_count:
            raise DamagedShardError(f"{where}: column {name!r} has {array.null_count} missing values in its lists")
        values = lists.values if lists is not None else array.to_numpy(zero_copy_only=False)
        size = self.sizes.get(name)
        if size is not None and len(values):
            if int(values.min()) < 0 or int(values.max()) >= size:
                bad = (values < 0) | (values >= size)
                what = f"has index {values[bad.argmax()]}, allowed are 0 to {size - 1}"
                raise DamagedShardError(f"{_at(bad, lists, where)}: column {name!r} {what}")
        elif values.dtype.kind == "f":
            bad = ~np.isfinite(values)
            if bad.any():
                raise DamagedShardError(
                    f"{_at(bad, lists, where)}: column {name!r} has {values[bad.argmax()]}, allowed are finite numbers"
                )

    def _check_targets(self, targets: NDArray, lengths: NDArray, where: str) -> None:
        bad = (targets < 0) | (targets >= np.maximum(lengths, 1))
        if bad.any():
            row = int(bad.argmax())
            raise DamagedShardError(
                f"{where}, row {row}: column 'targets' is {targets[row]}, allowed are 0 to {max(lengths[row] - 1, 0)}"
            )


def _lists_of(array: pa.ListArray) -> Jagged:
    """The outer lists of a column of lists of lists: each interaction counts as one value."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Jagged(np.empty(0), offsets - offsets[0])


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without what it says of missing values and of the names of a list's elements."""
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _at(bad: NDArray, lists: Jagged | None, where: str) -> str:
    """`where` with the row of the first bad value."""
    if lists is None:
        return where
    return f"{where}, row {int(np.searchsorted(lists.offsets, bad.argmax(), side='right')) - 1}"


def _handle(url: str) -> pa.NativeFile:
    filesystem, path = arrow_filesystem(url)
    return filesystem.open_input_file(path)


class _PatientFile(io.RawIOBase):
    """A file of an object store whose every request is repeated until the storage answers, or for `seconds`."""

    def __init__(self, handle: pa.NativeFile, url: str, seconds: float) -> None:
        super().__init__()
        self.handle, self.url, self.seconds = handle, url, seconds
        self.position, self.length = 0, handle.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        size = self.length - self.position if size is None or size < 0 else size
        begin = self.position
        data: bytes = patiently(lambda: self.handle.read_at(size, begin), self.url, self.seconds)
        self.position += len(data)
        return data
