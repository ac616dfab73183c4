"""items.parquet: the attributes of every item of the vocabulary, by its index.

Vocabularies of item features count each item once; bins and means are over the training events, as the model
sees them. An item that the item table lacks has unknown attributes.
"""

from __future__ import annotations

import polars as pl

from ingest.raw import item_features
from ingest.schema import FIRST_VALUE, DataConfig, Feature
from ingest.vocabulary import FittedFeature, Vocabulary, fit


def build_items(
    config: DataConfig, vocabulary: Vocabulary, items: pl.DataFrame | None, training: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, FittedFeature]]:
    """The item table and what was learned of its features. `training` has an item index and a time each event."""
    table = vocabulary.table.select("index", pl.col("value").alias("id"), "count")
    if items is not None:
        attributes = items.rename({"item": "id"})
        table = table.join(attributes, on="id", how="left", maintain_order="left")
    columns = [table[name] for name in ("index", "id", "count")]
    if config.title:
        columns.append(table["title"] if items is not None else pl.Series("title", [None] * table.height, pl.String))
    fitted: dict[str, FittedFeature] = {}
    for feature in item_features(config):
        values = first_events(vocabulary, training) if feature.since_first_event else table[feature.name]
        if feature.kind == "categories":
            values = values.fill_null([])
        fitted[feature.name] = fit(feature, _observed(feature, values, training))
        encoded = values if feature.kind == "elapsed" else _with_special_rows(fitted[feature.name].encode(values))
        columns.append(encoded.alias(feature.name))
    return pl.DataFrame(columns), fitted


def first_events(vocabulary: Vocabulary, training: pl.DataFrame) -> pl.Series:
    """The time of each item's first training event, by index; null for padding and unknown."""
    first = training.filter(pl.col("item") >= FIRST_VALUE).group_by("item").agg(pl.col("time").min())
    indices = vocabulary.table.select(pl.col("index").alias("item"))
    return indices.join(first, on="item", how="left", maintain_order="left")["time"]


def _observed(feature: Feature, values: pl.Series, training: pl.DataFrame) -> pl.Series:
    """What a feature is learned from: its values over the items, or a number's over the training events."""
    if feature.kind in ("category", "categories"):
        return values[FIRST_VALUE:]
    seen = values.gather(training["item"])
    return training["time"] - seen if feature.kind == "elapsed" else seen


def _with_special_rows(encoded: pl.Series) -> pl.Series:
    """Padding has index 0, unknown has 1; lists are empty and numbers 0 as they are."""
    if encoded.dtype == pl.Int32:
        return pl.concat([pl.Series(encoded.name, [0, 1], dtype=pl.Int32), encoded[FIRST_VALUE:]])
    return encoded
