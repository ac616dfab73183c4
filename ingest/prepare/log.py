"""The raw log and item table, as frames whose columns are named as the schema names them.

Events: `user`, `item`, `time`, `duration` (if declared) and every event feature. Items: `item`, `title` (if declared)
and every item feature that has a column. Only declared columns are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.feature import Feature, kind_of
from ingest.raw.columns import Column, read_columns


def event_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "event"]


def logged_features(config: DataConfig) -> list[Feature]:
    """The event features that are read from columns of the log; others are derived from the users' events."""
    return [feature for feature in event_features(config) if kind_of(feature).columns(feature)]


def item_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "item"]


def event_columns(config: DataConfig) -> list[str]:
    """The columns of the log that the config declares."""
    names = [config.user, config.item, config.time] + ([config.duration] if config.duration else [])
    for feature in logged_features(config):
        names += kind_of(feature).columns(feature)
    return names


def event_sources(config: DataConfig) -> dict[str, str]:
    """What the columns of `events_of` are called in the log."""
    return {"user": config.user, "item": config.item} | {f.name: f.source for f in logged_features(config)}


def events_of(config: DataConfig, columns: dict[str, Column]) -> pl.DataFrame:
    """The events of `columns`, each value checked."""
    frame = {
        "user": columns[config.user].ids(),
        "item": columns[config.item].ids(),
        "time": columns[config.time].times(config.time_unit),
    }
    if config.duration:
        frame["duration"] = columns[config.duration].durations()
    for feature in logged_features(config):
        kind = kind_of(feature)
        frame[feature.name] = kind.seen_at(kind.read(feature, columns, config.time_unit), frame["time"])
    return pl.DataFrame(frame)


def read_items(config: DataConfig, urls: list[str], logged: pl.Series) -> pl.DataFrame:
    """The item table, its ids in a type that holds those of the log, `logged`, too; duplicate ids are refused."""
    like = logged.dtype
    declared = [feature for feature in item_features(config) if kind_of(feature).columns(feature)]
    names = [config.item] + ([config.title] if config.title else [])
    names += [name for feature in declared for name in kind_of(feature).columns(feature)]
    sources = {"item": config.item, "title": config.title or ""} | {f.name: f.source for f in declared}
    frames, files = [], []
    for url in urls:
        columns = read_columns(url, names)
        of_folders = [name for name, source in sources.items() if source in columns and columns[source].of_folder]
        frame = {"item": columns[config.item].ids()}
        if "item" not in of_folders or like != pl.String:
            _same_family(url, config, frame["item"].dtype, like)
        if config.title:
            frame["title"] = columns[config.title].text()
        for feature in declared:
            frame[feature.name] = kind_of(feature).read(feature, columns, config.time_unit)
        frames.append(pl.DataFrame(frame))
        files.append(_types_of(url, frames[-1], of_folders))
    types = common_types(files, sources)
    log = _types_of(str(config.events), logged.alias("item").to_frame(), ())
    types["item"] = _common_type([log, *files], "item", config.item)
    parts = [cast_columns(frame, types, url, sources) for url, frame in zip(urls, frames, strict=True)]
    items = pl.concat(parts, rechunk=True)
    twice = items.filter(pl.col("item").is_duplicated())["item"]
    if len(twice):
        count = int((twice == twice[0]).sum())
        raise InputError(f"{config.items}: column {config.item!r} has the item {twice[0]!r} in {count} rows, takes one")
    return items


def _same_family(url: str, config: DataConfig, got: pl.DataType, like: pl.DataType) -> None:
    if got != pl.Null and got.is_integer() != like.is_integer():
        have, want = ("integers", "strings") if got.is_integer() else ("strings", "integers")
        raise InputError(f"{url}: column {config.item!r} has {have}, but the log {config.events} has {want}")


class FileTypes(NamedTuple):
    """What is known of a file's columns, by the names that they have in frames."""

    url: str
    types: Mapping[str, pl.DataType]
    ranges: Mapping[str, tuple[int, int]]
    """Smallest and largest value of columns of integers, where they are known."""
    of_folders: Collection[str]
    """Columns that the names of folders give."""


def _types_of(url: str, frame: pl.DataFrame, of_folders: Collection[str]) -> FileTypes:
    numbers = [column for column in frame if column.dtype.is_integer() and column.count()]
    ranges = {column.name: (int(column.min()), int(column.max())) for column in numbers}  # type: ignore[arg-type]
    return FileTypes(url, dict(zip(frame.columns, frame.dtypes, strict=True)), ranges, of_folders)


def common_types(files: Sequence[FileTypes], sources: Mapping[str, str]) -> dict[str, pl.DataType]:
    """The type of each column in all files together: integers of different types become int64, or uint64 where needed.

    A column without any value is of whatever type the others have, or a string; integers that folders' names give are
    strings where others are. `sources`: what columns are called in the files. Raises `InputError` where types differ
    otherwise, or no type of 64 bits holds all integers.
    """
    return {name: _common_type(files, name, sources.get(name, name)) for name in files[0].types}


def _common_type(files: Sequence[FileTypes], name: str, column: str) -> pl.DataType:
    found = [(file, file.types[name]) for file in files if file.types[name] not in (pl.Null, pl.List(pl.Null))]
    if not found:
        return pl.List(pl.String()) if isinstance(files[0].types[name], pl.List) else pl.String()
    if any(kind == pl.String for _, kind in found):
        found = [(file, pl.String() if name in file.of_folders else kind) for file, kind in found]
    first_file, first = found[0]
    for file, kind in found:
        if kind != first and not (_inner(kind).is_integer() and _inner(first).is_integer()):
            raise InputError(
                f"{file.url}: column {column!r} is {_inner(kind)}, but {_inner(first)} in {first_file.url}"
            )
    if all(kind == first for _, kind in found):
        return first
    together = _integer_type([file for file, _ in found if name in file.ranges], name, column)
    return pl.List(together) if isinstance(first, pl.List) else together


def _integer_type(files: Sequence[FileTypes], name: str, column: str) -> pl.DataType:
    lowest = min(files, key=lambda file: file.ranges[name][0], default=None)
    highest = max(files, key=lambda file: file.ranges[name][1], default=None)
    if lowest is None or highest is None or highest.ranges[name][1] < 2**63:
        return pl.Int64()
    if lowest.ranges[name][0] < 0:
        raise InputError(
            f"{lowest.url}: column {column!r} has {lowest.ranges[name][0]}, but {highest.url} has "
            f"{highest.ranges[name][1]}: no integer type of 64 bits holds both"
        )
    return pl.UInt64()


def _inner(kind: pl.DataType) -> pl.DataType:
    return kind.inner if isinstance(kind, pl.List) else kind  # type: ignore[return-value]


def cast_columns(
    frame: pl.DataFrame, types: Mapping[str, pl.DataType], url: str, sources: Mapping[str, str]
) -> pl.DataFrame:
    """The frame of the file `url` in the `types` of all files. Raises `InputError` with a value that does not fit."""
    try:
        return frame.cast(dict(types))  # type: ignore[arg-type]
    except pl.exceptions.InvalidOperationError:
        for name, kind in types.items():
            values = frame[name].explode() if isinstance(kind, pl.List) else frame[name]
            bad = values.filter(values.is_not_null() & values.cast(_inner(kind), strict=False).is_null())
            if len(bad):
                raise InputError(
                    f"{url}: column {sources.get(name, name)!r}: {bad[0]} does not fit {_inner(kind)}, "
                    "which the column is in other files"
                ) from None
        raise
