"""Row groups of a split's shards, read from local disk or an object store, and checked.

Storage that answers late or not at all is asked again (`ingest.arrow_files`); what arrives and is not what the manifest
promises is a `DamagedShardError` that names shard, row group, column and value. Indices out of range and lists of
unequal length never reach a table: TorchRec would silently read another row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Column, Integers, Jagged, arrow_offsets, concat, offsets_of
from ingest.arrow_files import RemoteFile, RemoteObject
from ingest.data.manifest import VERSION, VERSION_KEY, Manifest, Shard
from ingest.errors import DamagedShardError
from ingest.storage import is_remote, join

MOST_OPEN = 1024


@dataclass(frozen=True)
class StoredRows:
    """Users' rows as they are stored; R rows, N interactions in all."""

    users: list[object]
    """The log's own ids, where they are read."""
    targets: Integers
    """How many of each row's last interactions are to be predicted, [R]."""
    offsets: Integers
    """Where each row's interactions begin, and the last's end, [R + 1]."""
    columns: dict[str, Any]
    """Of the interactions: [N] values each, or a `Jagged` of N lists for features that are lists."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Integers:
        return np.diff(self.offsets)

    @classmethod
    def concat(cls, parts: list[StoredRows]) -> StoredRows:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls([], np.zeros(0, np.int64), np.zeros(1, np.int64), {})
        return cls(
            [user for part in parts for user in part.users],
            np.concatenate([part.targets for part in parts]),
            offsets_of(np.concatenate([part.lengths for part in parts])),
            {name: concat([part.columns[name] for part in parts]) for name in parts[0].columns},
        )


@dataclass(frozen=True)
class Skipped:
    """A damaged row group that was set aside."""

    path: str
    row_group: int
    rows: int
    reason: str


class Shards:
    """The shards of one split in the folder `url`. `skip`: whether what is damaged is set aside."""

    def __init__(
        self, url: str, manifest: Manifest, shards: list[Shard], columns: list[str], retry_seconds: float, skip: bool
    ) -> None:
        self.url, self.manifest, self.shards, self.columns = url, manifest, shards, columns
        self.retry_seconds, self.skip = retry_seconds, skip
        self.types = self._types()
        self.nested = {feature.name for feature in manifest.features if feature.of == "event" and feature.is_list}
        self.sizes = {feature.name: feature.size for feature in manifest.features if not feature.is_number}
        self.sizes["item"] = manifest.catalogue
        self.opened = functools.lru_cache(MOST_OPEN)(self._checked)

    def _types(self) -> dict[str, pa.DataType]:
        """What the data contract says of the columns; `user` has the log's own type."""
        types = {"targets": pa.int32(), "item": pa.list_(pa.int32()), "time": pa.list_(pa.int64())}
        types["duration"] = pa.list_(pa.float32())
        for feature in self.manifest.features:
            types[feature.name] = pa.list_(feature.stored_type)
        return types

    def path(self, shard: int) -> str:
        return join(self.url, self.shards[shard].path)

    def read(self, shard: int, groups: Sequence[int]) -> list[StoredRows | Skipped]:
        """Consecutive row groups, together where all are whole, in one request of an object store.

        Where one is damaged they are read one by one, and it is told or set aside. Raises `DamagedShardError`, and
        `InputError` where the storage does not answer.
        """
        try:
            return [self._read(shard, groups)]
        except DamagedShardError as error:
            if len(groups) > 1:
                return [found for group in groups for found in self.read(shard, [group])]
            if not self.skip:
                raise
            known = self.shards[shard]
            return [Skipped(known.path, groups[0], known.row_groups[groups[0]][0], str(error))]

    def _read(self, shard: int, groups: Sequence[int]) -> StoredRows:
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
        rows, interactions = np.sum([self.shards[shard].row_groups[group] for group in groups], axis=0)
        return self._rows(table, int(rows), int(interactions), where)

    def user_type(self) -> pa.DataType:
        """The Arrow type of the log's own user ids, by the first shard that can be read; there must be one."""
        for shard in range(len(self.shards)):
            with suppress(DamagedShardError, pa.ArrowException, OSError), self._open(shard) as file:
                return file.schema_arrow.field("user").type
        raise DamagedShardError(f"{self.path(0)}: neither this shard nor any other one of its split can be read")

    def _open(self, shard: int) -> pq.ParquetFile:
        """A shard; its footer is read and checked once, while it is among the `MOST_OPEN` last ones."""
        return self._file(self.path(shard), *self.opened(shard))

    def _file(self, url: str, handle: RemoteObject | None, footer: pq.FileMetaData | None) -> pq.ParquetFile:
        source: Any = url.removeprefix("file://") if handle is None else RemoteFile(handle)
        return pq.ParquetFile(source, metadata=footer, page_checksum_verification=True, pre_buffer=handle is not None)

    def _checked(self, shard: int) -> tuple[RemoteObject | None, pq.FileMetaData]:
        """The open object, and the footer of the shard."""
        url, handle = self.path(shard), None
        if is_remote(url):
            handle = RemoteObject(url, self.retry_seconds)
            found, expected = handle.size, self.shards[shard].bytes
            if found != expected:
                raise DamagedShardError(f"{url}: has {found} bytes, the manifest says {expected}")
        with self._file(url, handle, None) as file:
            self._check_schema(file.schema_arrow, url)
            return handle, file.metadata

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

    def _rows(self, table: pa.Table, rows: int, interactions: int, where: str) -> StoredRows:
        """The table's columns, each checked, without a copy; the manifest promises `rows` and `interactions`."""
        arrays = {name: table[name].combine_chunks() for name in self.columns}
        for name, array in arrays.items():
            if array.null_count:
                raise DamagedShardError(f"{where}: column {name!r} has no value in {array.null_count} rows")
        users = arrays.pop("user").to_pylist() if "user" in arrays else []
        targets = arrays.pop("targets").to_numpy().astype(np.int64)
        found = StoredRows(users, targets, arrow_offsets(arrays["item"]), {})
        if (len(found), int(found.offsets[-1])) != (rows, interactions):
            raise DamagedShardError(
                f"{where}: has {len(found)} rows and {found.offsets[-1]} interactions, the manifest says {rows} "
                f"and {interactions}"
            )
        most = np.maximum(found.lengths - 1, 0)
        bad = (targets < 0) | (targets > most)
        if bad.any():
            row = int(bad.argmax())
            raise DamagedShardError(
                f"{where}, row {row}: column 'targets' is {targets[row]}, allowed are 0 to {most[row]}"
            )
        for name, array in arrays.items():
            found.columns[name] = self._column(name, array, found, where)
        return found

    def _column(self, name: str, array: pa.ListArray, rows: StoredRows, where: str) -> Column:
        """A column's values, or lists, of every interaction of `rows`."""
        lengths = np.diff(arrow_offsets(array))
        if not np.array_equal(lengths, rows.lengths):
            row = int(np.flatnonzero(lengths != rows.lengths)[0])
            raise DamagedShardError(
                f"{where}, row {row}: column {name!r} has {lengths[row]} values, column 'item' has {rows.lengths[row]}"
            )
        values, nested = array.flatten(), name in self.nested
        missing = values.null_count + (values.flatten().null_count if nested else 0)
        if missing:
            raise DamagedShardError(f"{where}: column {name!r} has {missing} missing values in its lists")
        column = Jagged.from_arrow(values) if nested else values.to_numpy()
        wrong = self._wrong_value(name, column.values if isinstance(column, Jagged) else column)
        if wrong is not None:
            place, problem = wrong
            if isinstance(column, Jagged):
                place = _list_of(place, column.offsets)
            raise DamagedShardError(f"{where}, row {_list_of(place, rows.offsets)}: column {name!r} {problem}")
        return column

    def _wrong_value(self, column: str, values: NDArray[Any]) -> tuple[int, str] | None:
        """The place of the first value that may not be, and what is wrong with it."""
        size = self.sizes.get(column)
        if size is not None:
            if not len(values) or (values.min() >= 0 and values.max() < size):
                return None
            bad, allowed = (values < 0) | (values >= size), f"0 to {size - 1}"
        else:
            bad, allowed = ~np.isfinite(values), "finite numbers"
        place = int(bad.argmax())
        kind = "index " if size is not None else ""
        return (place, f"has {kind}{values[place]}, allowed are {allowed}") if bad.any() else None


def _list_of(place: int, offsets: Integers) -> int:
    """The list that has the value at `place`."""
    return int(np.searchsorted(offsets, place, side="right")) - 1


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without what it says of missing values and of the names of a list's elements."""
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind
