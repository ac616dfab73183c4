"""items.parquet: the attributes of every item of the catalogue, by its index; and what is learned of them.

The catalogue is the items that training knows, as `prepare.fit` has ordered them, and behind them all others that have
an event that stays, in whatever split, or stand in the item table: by their count in training, then by value, so that
nothing held out decides an index. Attributes are learned from the known items alone: vocabularies of item features
count each of them once; bins and means are over their training events. An item that the item table lacks has unknown
attributes. One task makes it: its memory grows with the items, not with the log.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE, Feature, PreparedFeature, kind_of
from ingest.features.vocabulary import look_up, read_parts
from ingest.prepare.fit import ITEM_TOTALS, KNOWN_ITEMS, fitted, vocabulary_of
from ingest.prepare.histories import ITEM
from ingest.prepare.log import item_features, read_items
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_table
from ingest.storage import join

ITEMS = "items.parquet"


def build_items(job: Job, files: list[str]) -> dict[str, Any]:
    """Write the item table from its `files`, and the whole vocabulary of items.

    Gives the size of the catalogue, the item features that do not wait for the times of events, how many events have an
    item that the files lack, and ranges of items with about as many events each as a partition has.
    """
    config = job.config
    logged = pl.concat(read_parts(join(job.work, ITEM_TOTALS)))
    items = read_items(config, files, logged["value"]) if files else None
    if items is not None:
        logged = logged.with_columns(pl.col("value").cast(items["item"].dtype))
    table = _catalogue(job, logged, items)
    write_table(vocabulary_of(job, ITEM), table.select(pl.col("id").alias("value"), "index", "count"))
    unknown = 0
    if items is not None:
        unknown = _unknown_events(config, logged, items)
        names = {"item": "id"} | {name: f"of {name}" for name in _declared(config)}
        items = items.rename(names).with_columns(listed=True)
        table = table.join(items, on="id", how="left", maintain_order="left")
    columns = [*table.select("index", "id", "count"), _exists(config, table)]
    if config.title:
        columns.append(table["title"] if files else pl.Series("title", [None] * table.height, pl.String))
    count_V = table["count"].to_numpy()
    features: dict[str, Any] = {}
    for feature in item_features(config):
        kind = kind_of(feature)
        values = table[f"of {feature.name}"] if kind.columns(feature) else table["first"]
        if kind.of_time:
            columns.append(values.cast(pl.Int64).alias(feature.name))
            continue
        column, found = _encoded(job, feature, values, count_V)
        columns.append(pl.Series(feature.name, column))
        features[feature.name] = found.model_dump()
    write_table(join(job.work, ITEMS), pl.DataFrame(columns))
    return {
        "size": table.height,
        "features": features,
        "unknown_item_events": unknown,
        "ranges": _ranges(table["total"].fill_null(0).to_numpy(), job.partitions),
    }


def _declared(config: DataConfig) -> list[str]:
    """The features that are columns of the item table; ours, such as `first`, have no space in them."""
    return [feature.name for feature in item_features(config) if kind_of(feature).columns(feature)]


def _catalogue(job: Job, logged: pl.DataFrame, items: pl.DataFrame | None) -> pl.DataFrame:
    """Every item by its index: id, index, count, total, first and appeared. `logged`: the items of the log.

    An item that training knows is as old as its `first` event there; another one as its first in the whole log.
    """
    known = pl.concat(read_parts(join(job.work, KNOWN_ITEMS)))
    known = known.with_columns(pl.col("value").cast(logged["value"].dtype))
    value = logged.filter(pl.col("appeared").is_not_null())["value"]
    if items is not None:
        value = pl.concat([value, items["item"]]).unique()
    others = value.to_frame().join(known, on="value", how="anti").join(logged, on="value", how="left")
    others = others.with_columns(pl.col("count", "total").fill_null(0), first="appeared")
    others = others.sort("count", "value", descending=[True, False])
    table = pl.concat([known, others], how="diagonal")
    return table.with_columns(index=pl.int_range(table.height, dtype=pl.Int32)).rename({"value": "id"})


def _exists(config: DataConfig, table: pl.DataFrame) -> pl.Series:
    """The first event of each item that the item table lacks; null where there is none, or no moments."""
    if config.time_unit == "position":
        return pl.Series("exists", [None], pl.Int64).new_from_index(0, table.height)
    if "listed" not in table.columns:
        return table["appeared"].alias("exists")
    return table.select(pl.when(pl.col("listed").is_null()).then("appeared").alias("exists"))["exists"]


def _ranges(total_V: NDArray[np.int64], parts: int) -> list[int]:
    """The first item of each of `parts` ranges."""
    sums = np.cumsum(total_V)
    firsts = np.searchsorted(sums, np.arange(parts) * int(sums[-1]) // parts, side="right")
    return [int(first) for first in firsts]


def _unknown_events(config: DataConfig, logged: pl.DataFrame, items: pl.DataFrame) -> int:
    """The events whose item the item table lacks. Refused where the config says so, or where it lacks all of them."""
    unknown = logged.join(items.select(pl.col("item").alias("value")), on="value", how="anti")
    unknown = unknown.sort("total", "value", descending=[True, False])
    count = int(unknown["total"].sum())
    if unknown.height == logged.height:
        raise InputError(
            f"{config.items}: column {config.item!r} has none of the {logged.height} items of the log "
            f"{config.events}, such as {unknown['value'][0]!r}; leave out data.items, or name the table of these items"
        )
    if count and config.unknown_items == "error":
        raise InputError(
            f"{config.events}: column {config.item!r}: the item table {config.items} lacks item "
            f"{unknown['value'][0]!r} ({count} events, {unknown.height} items are unknown to it); "
            "data.unknown_items: keep lets them in without attributes"
        )
    return count


def _encoded(
    job: Job, feature: Feature, values: pl.Series, count_V: NDArray[np.int64]
) -> tuple[pa.Array, PreparedFeature]:
    """A column of the item table by index, and the feature. `count_V`: the training events of each item."""
    kind = kind_of(feature)
    every = kind.compact(values[FIRST_VALUE:].rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()))
    known = every[: job.items - FIRST_VALUE]
    counted = kind.count(feature, known, count_V[FIRST_VALUE : job.items]) if kind.learns(feature) else None
    found = fitted(job, feature, counted)
    encoded = kind.encode(found, every, functools.partial(look_up, vocabulary_of(job, feature.name)))
    return pa.concat_arrays([kind.special_rows(found), encoded]), found
