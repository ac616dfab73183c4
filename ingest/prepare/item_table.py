"""items.parquet: the attributes of every item of the vocabulary, by its index; and what is learned of them.

Vocabularies of item features count each item once; bins and means are over the training events. An item that the item
table lacks has unknown attributes. One task makes it: its memory grows with the items, not with the log.
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
from ingest.prepare.fit import ITEM_TOTALS, fitted, vocabulary_of
from ingest.prepare.histories import ITEM
from ingest.prepare.log import item_features, read_items
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_table
from ingest.prepare.survey import type_of
from ingest.storage import join

ITEMS = "items.parquet"


def build_items(job: Job, files: list[str]) -> dict[str, Any]:
    """Write the item table from its `files`.

    Gives the item features that do not wait for the times of events, how many events have an item that the files lack,
    and ranges of items with about as many training events each as a partition has.
    """
    config = job.config
    vocabulary = pl.concat(read_parts(vocabulary_of(job, ITEM), ["value", "index", "count", "first"]))
    table = vocabulary.rename({"value": "id"})
    unknown = 0
    if files:
        items = read_items(config, files, type_of((job.types or {})[ITEM]))
        unknown = _unknown_events(job, config, items)
        table = table.join(items.rename({"item": "id"}), on="id", how="left", maintain_order="left")
    columns = [table[name] for name in ("index", "id", "count")]
    if config.title:
        columns.append(table["title"] if files else pl.Series("title", [None] * table.height, pl.String))
    count_V = table["count"].to_numpy()
    features: dict[str, Any] = {}
    for feature in item_features(config):
        kind = kind_of(feature)
        values = table[feature.name] if kind.columns(feature) else table["first"]
        if kind.of_time:
            columns.append(values.cast(pl.Int64).alias(feature.name))
            continue
        column, found = _encoded(job, feature, values, count_V)
        columns.append(pl.Series(feature.name, column))
        features[feature.name] = found.model_dump()
    write_table(join(job.work, ITEMS), pl.DataFrame(columns))
    return {"features": features, "unknown_item_events": unknown, "ranges": _ranges(count_V, job.partitions)}


def _ranges(count_V: NDArray[np.int64], parts: int) -> list[int]:
    """The first item of each of `parts` ranges."""
    sums = np.cumsum(count_V)
    firsts = np.searchsorted(sums, np.arange(parts) * int(sums[-1]) // parts, side="right")
    return [int(first) for first in firsts]


def _unknown_events(job: Job, config: DataConfig, items: pl.DataFrame) -> int:
    """The events whose item the item table lacks. Refused where the config says so, or where it lacks all of them."""
    events = pl.concat(read_parts(join(job.work, ITEM_TOTALS)))
    unknown = events.join(items.select(pl.col("item").alias("value")), on="value", how="anti")
    unknown = unknown.sort("total", "value", descending=[True, False])
    count = int(unknown["total"].sum())
    if unknown.height == events.height:
        raise InputError(
            f"{config.items}: column {config.item!r} has none of the {events.height} items of the log "
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
    known = kind.compact(values[FIRST_VALUE:].rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()))
    counted = kind.count(feature, known, count_V[FIRST_VALUE:]) if kind.learns(feature) else None
    found = fitted(job, feature, counted)
    encoded = kind.encode(found, known, functools.partial(look_up, vocabulary_of(job, feature.name)))
    return pa.concat_arrays([kind.special_rows(found), encoded]), found
