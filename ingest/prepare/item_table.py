"""items.parquet: the attributes of every item of the vocabulary, by its index; and what is learned of them.

Vocabularies of item features count each item once; bins and means are over the training events. An item that the item
table lacks has unknown attributes. One task makes it: its memory grows with the items, not with the log.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ingest.arrays.jagged import offsets_of
from ingest.data.manifest import PreparedFeature
from ingest.data.schema import FIRST_VALUE, DataConfig, Feature
from ingest.errors import InputError
from ingest.prepare.fit import base_bins, base_feature, base_values, vocabulary_of, write_vocabulary
from ingest.prepare.histories import ITEM
from ingest.prepare.log import item_features, read_items
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_table
from ingest.prepare.statistics import Moments
from ingest.prepare.survey import type_of
from ingest.prepare.vocabulary import (
    bin_index,
    bins_table,
    build_vocabulary,
    describe,
    describe_bins,
    encode_lists,
    gather,
    look_up,
    read_parts,
    scaled,
    weighted_quantile_edges,
)
from ingest.storage import join

ITEMS = "items.parquet"


def build_items(job: Job, files: list[str]) -> dict[str, Any]:
    """Write the item table from its `files`; gives the item features and how many events have an unknown item."""
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
    features: dict[str, Any] = {}
    for feature in item_features(config):
        values = table["first"] if feature.since_first_event else table[feature.name]
        encoded, found = _fitted(job, feature, values, table["count"].to_numpy())
        columns.append(encoded.alias(feature.name))
        features[feature.name] = found.model_dump() if found else None
    write_table(join(job.work, ITEMS), pl.DataFrame(columns))
    return {"features": features, "unknown_item_events": unknown}


def _unknown_events(job: Job, config: DataConfig, items: pl.DataFrame) -> int:
    """The events whose item the item table lacks. Refused where the config says so."""
    events = pl.concat(read_parts(join(job.work, "merged/item.parquet"), ["value", "total"]))
    unknown = events.join(items.select(pl.col("item").alias("value")), on="value", how="anti")
    unknown = unknown.sort("total", "value", descending=[True, False])
    count = int(unknown["total"].sum())
    if count and config.unknown_items == "error":
        raise InputError(
            f"{config.events}: column {config.item!r}: the item table {config.items} lacks item "
            f"{unknown['value'][0]!r} ({count} events, {unknown.height} items are unknown to it); "
            "data.unknown_items: keep lets them in without attributes"
        )
    return count


def _fitted(job: Job, feature: Feature, values: pl.Series, count: NDArray) -> tuple[pl.Series, PreparedFeature | None]:
    """A column of the item table by index, and the feature; None where its bins have to wait for the ages of events.

    `count`: the training events of each item.
    """
    if feature.kind == "elapsed":
        return values.cast(pl.Int64), None
    if feature.is_number:
        known = values.is_not_null().to_numpy()
        moments = Moments.of(values.drop_nulls().to_numpy().astype(np.float64), count[known])
        found = base_feature(job, feature) or describe(
            feature, 0, mean=moments.mean, deviation=moments.deviation or 1.0
        )
        return scaled(values, found), found
    if feature.kind == "number":
        found, labels = _bins(job, feature, values, count)
        encoded = _with_special_rows(bin_index(values, found.edges))
        counts = np.bincount(encoded.to_numpy(), weights=count, minlength=found.size).astype(np.int64)
        counts[0] = 0
        write_vocabulary(job, feature.name, bins_table(labels, counts.tolist()))
        return encoded, found
    return _categories(job, feature, values)


def _bins(job: Job, feature: Feature, values: pl.Series, count: NDArray) -> tuple[PreparedFeature, list[str]]:
    if (before := base_bins(job, feature)) is not None:
        return before
    edges = feature.edges()
    if isinstance(feature.bins, int):
        known = values.is_not_null().to_numpy()
        edges = weighted_quantile_edges(values.drop_nulls().to_numpy(), count[known], feature.bins)
    return describe_bins(feature, edges)


def _categories(job: Job, feature: Feature, values: pl.Series) -> tuple[pl.Series, PreparedFeature]:
    """A category or a list of them; each item of the vocabulary counts once."""
    listed = feature.kind == "categories"
    values = values.fill_null([]) if listed else values
    flat = values[FIRST_VALUE:].explode(empty_as_null=False) if listed else values[FIRST_VALUE:]
    counted = flat.alias("value").to_frame().group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))
    vocabulary = build_vocabulary(counted, feature.min_count, base_values(job, feature.name, counted.schema["value"]))
    write_vocabulary(job, feature.name, vocabulary)
    found = describe(feature, vocabulary.height)
    distinct = counted["value"].drop_nulls()
    index = pl.DataFrame({"value": distinct, "index": look_up(vocabulary_of(job, feature.name), distinct)})
    every = (values.explode(empty_as_null=False) if listed else values).alias("value").to_frame()
    encoded = every.join(index, on="value", how="left", maintain_order="left")["index"].fill_null(1).cast(pl.Int32)
    if not listed:
        return _with_special_rows(encoded), found
    offsets = offsets_of(values.list.len().to_numpy())
    return pl.Series(feature.name, encode_lists(offsets, encoded.to_numpy())), found


def _with_special_rows(encoded: pl.Series) -> pl.Series:
    """Padding has index 0 and unknown has 1."""
    return pl.concat([pl.Series(encoded.name, [0, 1], dtype=pl.Int32), encoded[FIRST_VALUE:]])


def ages(job: Job, feature: Feature, item_I: NDArray, code_N: NDArray, time_N: NDArray) -> pl.Series:
    """The item's age at each event, null where it is unknown: indices [I] of the items, and which of them [N] it is."""
    since_N = gather(join(job.work, ITEMS), feature.name, item_I).gather(code_N)
    return pl.Series(time_N) - since_N
