"""What is learned from the training events: vocabularies, bins, means; and values encoded by them.

A vocabulary orders its values by count, the most frequent first, then by value. Bins of equal frequency begin at
values of the data; edges that coincide are merged, so that no bin is empty by construction.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from ingest.errors import InputError
from ingest.manifest import PreparedFeature
from ingest.schema import FIRST_VALUE, UNKNOWN, Feature

NAMES = ["<padding>", "<unknown>"]


@dataclass(frozen=True)
class Vocabulary:
    """`table` has value, index (int32) and count; rows 0 and 1, padding and unknown, have no value."""

    table: pl.DataFrame

    @property
    def size(self) -> int:
        return self.table.height

    def encode(self, values: pl.Series) -> pl.Series:
        """Indices (int32); 1 where a value is null or not in the vocabulary."""
        known = self.table[FIRST_VALUE:].select("value", "index")
        joined = values.alias("value").to_frame().join(known, on="value", how="left", maintain_order="left")
        return joined["index"].fill_null(UNKNOWN)

    def encode_lists(self, lists: pl.Series) -> pl.Series:
        """The same for lists; values that are unknown count once in a list."""
        array = lists.rechunk().to_arrow()
        flat = self.encode(lists.explode(empty_as_null=False)).to_arrow()
        encoded = pl.from_arrow(pa.LargeListArray.from_arrays(_offsets(array), flat))
        assert isinstance(encoded, pl.Series)
        return encoded.list.unique(maintain_order=True)

    def named(self) -> pl.DataFrame:
        """The table with its values as text, padding and unknown named."""
        text = self.table["value"].cast(pl.String)[FIRST_VALUE:]
        return self.table.with_columns(pl.concat([pl.Series("value", NAMES), text]))


def _offsets(array: pa.LargeListArray) -> pa.Array:
    offsets = array.offsets
    return pa.array(offsets.to_numpy() - offsets[0].as_py())


def build_vocabulary(values: pl.Series, min_count: int) -> Vocabulary:
    """The vocabulary of `values`; its row 1 counts those that are null or too rare."""
    counted = pl.DataFrame({"value": values}).group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))
    kept = counted.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
    kept = kept.sort("count", "value", descending=[True, False])
    special = pl.DataFrame(
        {"value": pl.Series([None, None], dtype=values.dtype), "count": [0, len(values) - int(kept["count"].sum())]}
    )
    table = pl.concat([special, kept.select("value", "count")])
    index = pl.int_range(table.height, dtype=pl.Int32).alias("index")
    return Vocabulary(table.select("value", index, "count"))


@dataclass(frozen=True)
class FittedFeature:
    prepared: PreparedFeature
    vocabulary: Vocabulary | None
    """None for a number."""

    def encode(self, values: pl.Series) -> pl.Series:
        """The values as the model sees them: an index, a list of indices or a standardised number."""
        if self.vocabulary is None:
            scaled = (values - self.prepared.mean) / self.prepared.deviation
            return scaled.fill_null(0.0).cast(pl.Float32)
        if self.prepared.kind == "category":
            return self.vocabulary.encode(values)
        if self.prepared.kind == "categories":
            return self.vocabulary.encode_lists(values)
        return bin_index(values, self.prepared.edges)


def fit(feature: Feature, values: pl.Series) -> FittedFeature:
    """Learn `feature` from `values`: of all training events, or of all items for the vocabulary of an item feature."""
    if feature.is_number:
        known = values.drop_nulls().to_numpy().astype(np.float64)
        mean = float(known.mean()) if len(known) else 0.0
        deviation = float(known.std()) if len(known) else 1.0
        return FittedFeature(_prepared(feature, 0, mean=mean, deviation=deviation or 1.0), None)
    if feature.bins is not None:
        return _fit_bins(feature, values)
    flat = values.explode(empty_as_null=False) if feature.kind == "categories" else values
    vocabulary = build_vocabulary(flat, feature.min_count)
    return FittedFeature(_prepared(feature, vocabulary.size), vocabulary)


def _prepared(
    feature: Feature, size: int, edges: list[float] | None = None, mean: float = 0.0, deviation: float = 1.0
) -> PreparedFeature:
    return PreparedFeature(
        name=feature.name,
        kind=feature.kind,
        of=feature.of,
        intent=feature.intent,
        size=size,
        edges=edges or [],
        mean=mean,
        deviation=deviation,
    )


def _fit_bins(feature: Feature, values: pl.Series) -> FittedFeature:
    edges = feature.edges()
    if isinstance(feature.bins, int):
        edges = quantile_edges(values, feature.bins)
    labels = feature.bin_labels or bin_labels(feature, edges)
    if len(labels) != len(edges) + 1:
        raise InputError(
            f"feature {feature.name!r}: the data give {len(edges) + 1} bins of equal frequency, "
            f"not {feature.bins}; bin_labels names {len(labels)}"
        )
    size = FIRST_VALUE + len(edges) + 1
    counts = np.bincount(bin_index(values, edges).to_numpy(), minlength=size)
    table = pl.DataFrame(
        {
            "value": pl.Series([None, None, *labels], dtype=pl.String),
            "index": pl.Series(range(size), dtype=pl.Int32),
            "count": pl.Series(counts, dtype=pl.Int64),
        }
    )
    return FittedFeature(_prepared(feature, size, edges), Vocabulary(table))


def quantile_edges(values: pl.Series, bins: int) -> list[float]:
    """The value at which each bin but the first begins when sorted `values` are cut in `bins` equal parts."""
    known = values.drop_nulls().to_numpy()
    if len(known) == 0:
        return []
    places = np.arange(1, bins) * len(known) // bins
    edges = np.unique(np.partition(known, places)[places])
    return [float(edge) for edge in edges if edge > known.min()]


def bin_index(values: pl.Series, edges: list[float]) -> pl.Series:
    """2 + the number of edges <= value (int32), and 1 where the value is null."""
    found = np.searchsorted(np.asarray(edges, np.float64), values.fill_null(0).to_numpy(), side="right")
    index = pl.DataFrame({"index": (found + FIRST_VALUE).astype(np.int32), "null": values.is_null()})
    return index.select(pl.when("null").then(pl.lit(UNKNOWN, pl.Int32)).otherwise("index").alias("index"))["index"]


def bin_labels(feature: Feature, edges: list[float]) -> list[str]:
    """Such as `< 7d`, `7d - 30d`, `>= 30d`."""
    if isinstance(feature.bins, list):
        texts = [edge if isinstance(edge, str) else f"{edge:g}" for edge in feature.bins]
    else:
        texts = [_duration_text(edge) if feature.kind == "elapsed" else f"{edge:g}" for edge in edges]
    if not texts:
        return ["any"]
    between = [f"{lower} - {upper}" for lower, upper in itertools.pairwise(texts)]
    return [f"< {texts[0]}", *between, f">= {texts[-1]}"]


def _duration_text(milliseconds: float) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if abs(milliseconds) >= size:
            return f"{round(milliseconds / size, 1):g}{unit}"
    return f"{milliseconds:g}ms"
