"""The raw log and item table, as frames whose columns are named as the schema names them.

Events: `user`, `item`, `time`, `duration` (if declared) and every event feature. Items: `item`, `title` (if declared)
and every item feature that has a column. Only declared columns are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.feature import Feature, kind_of
from ingest.raw.columns import Column, read_columns


def event_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "event"]


def item_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "item"]


def event_columns(config: DataConfig) -> list[str]:
    """The columns of the log that the config declares."""
    names = [config.user, config.item, config.time] + ([config.duration] if config.duration else [])
    for feature in event_features(config):
        names += kind_of(feature).columns(feature)
    return names


def event_sources(config: DataConfig) -> dict[str, str]:
    """What the columns of `events_of` are called in the log."""
    return {"user": config.user, "item": config.item} | {f.name: f.source for f in event_features(config)}


def events_of(config: DataConfig, columns: dict[str, Column]) -> pl.DataFrame:
    """The events of `columns`, each value checked."""
    frame = {
        "user": columns[config.user].ids(),
        "item": columns[config.item].ids(),
        "time": columns[config.time].times(config.time_unit),
    }
    if config.duration:
        frame["duration"] = columns[config.duration].durations()
    for feature in event_features(config):
        kind = kind_of(feature)
        frame[feature.name] = kind.seen_at(kind.read(feature, columns, config.time_unit), frame["time"])
    return pl.DataFrame(frame)


def read_items(config: DataConfig, urls: list[str], like: pl.DataType) -> pl.DataFrame:
    """The item table, its ids in the type `like` of the log's; duplicate ids are refused."""
    declared = [feature for feature in item_features(config) if kind_of(feature).columns(feature)]
    names = [config.item] + ([config.title] if config.title else [])
    names += [name for feature in declared for name in kind_of(feature).columns(feature)]
    frames = []
    for url in urls:
        columns = read_columns(url, names)
        frame = {"item": columns[config.item].ids()}
        _same_family(url, config, frame["item"].dtype, like)
        if config.title:
            frame["title"] = columns[config.title].text()
        for feature in declared:
            frame[feature.name] = kind_of(feature).read(feature, columns, config.time_unit)
        frames.append(pl.DataFrame(frame))
    items = _concat(frames, urls, {"item": config.item} | {feature.name: feature.source for feature in declared})
    twice = items.filter(pl.col("item").is_duplicated())["item"]
    if len(twice):
        count = int((twice == twice[0]).sum())
        raise InputError(f"{config.items}: column {config.item!r} has the item {twice[0]!r} in {count} rows, takes one")
    return items.with_columns(pl.col("item").cast(like, strict=False)).drop_nulls("item")


def _same_family(url: str, config: DataConfig, got: pl.DataType, like: pl.DataType) -> None:
    if got.is_integer() != like.is_integer():
        have, want = ("integers", "strings") if got.is_integer() else ("strings", "integers")
        raise InputError(f"{url}: column {config.item!r} has {have}, but the log {config.events} has {want}")


def _concat(frames: list[pl.DataFrame], urls: list[str], sources: dict[str, str]) -> pl.DataFrame:
    """All files' frames as one, in the types that they have in common."""
    schemas = [dict(frame.schema) for frame in frames]
    types = common_types(urls, schemas, sources)  # type: ignore[arg-type]
    return pl.concat([frame.cast(types) for frame in frames], rechunk=True)  # type: ignore[arg-type]


def common_types(
    urls: Sequence[str], schemas: Sequence[Mapping[str, pl.DataType]], sources: Mapping[str, str]
) -> dict[str, pl.DataType]:
    """The type of each column in all files together: integers of different widths become int64.

    A column without any value is of whatever type the others have, or a string. `sources`: what columns are called in
    the files. Raises `InputError` where types differ otherwise.
    """
    return {
        name: _common_type(
            [(url, schema[name]) for url, schema in zip(urls, schemas, strict=True)], sources.get(name, name)
        )
        for name in schemas[0]
    }


def _common_type(found: list[tuple[str, pl.DataType]], column: str) -> pl.DataType:
    first_in = {kind: url for url, kind in reversed(found) if kind not in (pl.Null, pl.List(pl.Null))}
    if not first_in:
        return pl.List(pl.String()) if isinstance(found[0][1], pl.List) else pl.String()
    first_url = next(url for url, kind in found if kind in first_in)
    first = next(kind for _, kind in found if kind in first_in)
    if len(first_in) == 1:
        return first
    for url, kind in found:
        if kind in first_in and kind != first and not (_inner(kind).is_integer() and _inner(first).is_integer()):
            raise InputError(f"{url}: column {column!r} is {_inner(kind)}, but {_inner(first)} in {first_url}")
    return pl.List(pl.Int64()) if isinstance(first, pl.List) else pl.Int64()


def _inner(kind: pl.DataType) -> pl.DataType:
    return kind.inner if isinstance(kind, pl.List) else kind  # type: ignore[return-value]
