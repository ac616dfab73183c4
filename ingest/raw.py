"""The raw log and item table, as frames whose columns are named as the schema names them.

Events: `user`, `item`, `time`, `duration` (if declared) and every event feature, in the order of the log: files
sorted by path, rows as they come. Items: `item`, `title` (if declared) and every item feature that has a column.
Only declared columns are read.
"""

from __future__ import annotations

import polars as pl

from ingest.columns import Column, read_columns
from ingest.errors import InputError
from ingest.schema import DataConfig, Feature


def event_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "event"]


def item_features(config: DataConfig) -> list[Feature]:
    return [feature for feature in config.features if feature.of == "item"]


def read_events(config: DataConfig, urls: list[str]) -> pl.DataFrame:
    names = [config.user, config.item, config.time] + ([config.duration] if config.duration else [])
    for feature in event_features(config):
        names += [feature.source] if feature.first_of is None else list(feature.first_of.values())
    sources = {"user": config.user, "item": config.item} | {f.name: f.source for f in event_features(config)}
    frames = [_events_of(config, read_columns(url, names)) for url in urls]
    events = _concat(frames, urls, sources)
    if events.height == 0:
        raise InputError(f"{config.events}: the log has no events")
    return events


def _events_of(config: DataConfig, columns: dict[str, Column]) -> pl.DataFrame:
    frame = {
        "user": columns[config.user].ids(),
        "item": columns[config.item].ids(),
        "time": columns[config.time].times(config.time_unit),
    }
    if config.duration:
        frame["duration"] = columns[config.duration].durations()
    for feature in event_features(config):
        if feature.first_of is not None:
            frame[feature.name] = _first_of(feature, columns, len(frame["user"]))
        elif feature.kind == "elapsed":
            frame[feature.name] = frame["time"] - columns[feature.source].moments(config.time_unit)
        else:
            frame[feature.name] = _values(feature, columns[feature.source])
    return pl.DataFrame(frame)


def _values(feature: Feature, column: Column) -> pl.Series:
    if feature.kind == "number":
        return column.numbers()
    return column.categories() if feature.kind == "categories" else column.category()


def _first_of(feature: Feature, columns: dict[str, Column], rows: int) -> pl.Series:
    """The label of the first flag that is true, by setting the labels from the last to the first."""
    assert feature.first_of is not None
    flags = pl.DataFrame({str(i): columns[name].flags() for i, name in enumerate(feature.first_of.values())})
    label = pl.lit(feature.otherwise)
    for i, name in reversed(list(enumerate(feature.first_of))):
        label = pl.when(pl.col(str(i))).then(pl.lit(name)).otherwise(label)
    if not feature.first_of:
        return pl.repeat(feature.otherwise, rows, eager=True)
    return flags.select(label.alias("label"))["label"]


def read_items(config: DataConfig, urls: list[str], like: pl.DataType) -> pl.DataFrame:
    """The item table, its ids in the type `like` of the log's; duplicate ids are refused."""
    declared = [feature for feature in item_features(config) if not feature.since_first_event]
    names = [config.item] + ([config.title] if config.title else []) + [feature.source for feature in declared]
    frames = []
    for url in urls:
        columns = read_columns(url, names)
        frame = {"item": columns[config.item].ids()}
        _same_family(url, config, frame["item"].dtype, like)
        if config.title:
            frame["title"] = columns[config.title].text()
        for feature in declared:
            column = columns[feature.source]
            moments = feature.kind == "elapsed"
            frame[feature.name] = column.moments(config.time_unit) if moments else _values(feature, column)
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
    """All files' frames as one; integers of different widths become int64, other differences are refused."""
    for name in frames[0].columns:
        dtypes = [frame.schema[name] for frame in frames]
        known = {dtype for dtype in dtypes if dtype not in (pl.Null, pl.List(pl.Null))}
        target = known.pop() if len(known) == 1 else None
        if target is None and not known:
            target = pl.List(pl.String) if isinstance(dtypes[0], pl.List) else pl.String()
        if target is None:
            lists = isinstance(next(iter(known)), pl.List)
            target = pl.List(pl.Int64) if lists else pl.Int64()
            _all_integers(dtypes, urls, sources.get(name, name))
        frames = [
            frame if frame.schema[name] == target else frame.with_columns(pl.col(name).cast(target)) for frame in frames
        ]
    return pl.concat(frames, rechunk=True)


def _all_integers(dtypes: list[pl.DataType], urls: list[str], column: str) -> None:
    inner = [dtype.inner if isinstance(dtype, pl.List) else dtype for dtype in dtypes]
    first = next(i for i, dtype in enumerate(inner) if dtype != pl.Null)
    for url, dtype in zip(urls, inner, strict=True):
        if dtype == pl.Null or dtype == inner[first] or (dtype.is_integer() and inner[first].is_integer()):
            continue
        raise InputError(f"{url}: column {column!r} is {dtype}, but {inner[first]} in {urls[first]}")
