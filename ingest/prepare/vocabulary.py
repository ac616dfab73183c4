"""Vocabularies, bins and scales: what is learned from the training events, and values encoded by it.

A vocabulary orders its values by count, the most frequent first, then by value; one that grows keeps the values that it
has, in their places, and orders the new ones so behind them. Bins of equal frequency begin at values of the data; edges
that coincide are merged, so that no bin is empty by construction.

A vocabulary is a Parquet file with the columns value, index and count, in the order of the index. It is read a row
group at a time: tens of millions of values need not fit a task's memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.data.manifest import PreparedFeature
from ingest.data.schema import FIRST_VALUE, UNKNOWN, Feature
from ingest.errors import InputError
from ingest.storage import arrow_filesystem

NAMES = ["<padding>", "<unknown>"]


def build_vocabulary(
    counted: pl.DataFrame, min_count: int, base: pl.Series | None = None, events: int | None = None
) -> pl.DataFrame:
    """The vocabulary of `counted` (value, count, and whatever else, which is kept): rows 0 and 1 have no value.

    `base`: values that it begins with. `events`: how many values there are in all, by default those of `counted`; row 1
    counts those that are null or too rare.
    """
    known = counted.filter(pl.col("value").is_not_null())
    old = pl.Series("value", [], dtype=counted.schema["value"]) if base is None else base.alias("value")
    first = old.to_frame().join(known, on="value", how="left", maintain_order="left")
    first = first.with_columns(pl.col("count").fill_null(0))
    new = known.filter(pl.col("count") >= min_count).join(old.to_frame(), on="value", how="anti")
    kept = pl.concat([first, new.sort("count", "value", descending=[True, False])])
    total = int(counted["count"].sum()) if events is None else events
    special = pl.DataFrame(
        {"value": [None, None], "count": [0, total - int(kept["count"].sum())]},
        schema={"value": kept.schema["value"], "count": pl.Int64},
    )
    table = pl.concat([special, kept.with_columns(pl.col("count").cast(pl.Int64))], how="diagonal")
    index = pl.int_range(table.height, dtype=pl.Int32).alias("index")
    return table.select("value", index, "count", pl.exclude("value", "count"))


def named(table: pl.DataFrame) -> pl.DataFrame:
    """A part of a vocabulary with its values as text, padding and unknown named."""
    text = pl.col("value").cast(pl.String)
    name = pl.when(pl.col("index") == 0).then(pl.lit(NAMES[0])).when(pl.col("index") == 1).then(pl.lit(NAMES[1]))
    return table.with_columns(name.otherwise(text).alias("value"))


def read_parts(url: str, columns: list[str]) -> Iterator[pl.DataFrame]:
    """A Parquet file's row groups, one after the other."""
    filesystem, path = arrow_filesystem(url)
    with filesystem.open_input_file(path) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            frame = pl.from_arrow(file.read_row_group(group, columns=columns, use_threads=False))
            assert isinstance(frame, pl.DataFrame)
            yield frame


def look_up(url: str, values: pl.Series) -> NDArray[np.int32]:
    """The index of each of `values`, which are all different, in the vocabulary `url`; 1 where it is not there."""
    index = np.full(len(values), UNKNOWN, dtype=np.int32)
    wanted = values.alias("value").to_frame().with_row_index("place")
    for part in read_parts(url, ["value", "index"]):
        known = part.filter(pl.col("index") >= FIRST_VALUE).with_columns(pl.col("value").cast(values.dtype))
        found = wanted.join(known, on="value", how="inner")
        index[found["place"].to_numpy()] = found["index"].to_numpy()
    return index


def gather(url: str, column: str, index: NDArray) -> pl.Series:
    """A column of the Parquet file `url` at the rows `index`."""
    order = np.argsort(index, kind="stable")
    parts: list[pl.Series] = []
    begin = 0
    for part in read_parts(url, [column]):
        low, high = np.searchsorted(index[order], [begin, begin + part.height])
        parts.append(part[column].gather(index[order[low:high]] - begin))
        begin += part.height
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pl.concat(parts).gather(back)


def describe(
    feature: Feature, size: int, edges: list[float] | None = None, mean: float = 0.0, deviation: float = 1.0
) -> PreparedFeature:
    """The feature as the manifest has it."""
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


def describe_bins(feature: Feature, edges: list[float]) -> tuple[PreparedFeature, list[str]]:
    """A feature in bins, and their labels."""
    labels = feature.bin_labels or bin_labels(feature, edges)
    if len(labels) != len(edges) + 1:
        raise InputError(
            f"feature {feature.name!r}: the data give {len(edges) + 1} bins of equal frequency, "
            f"not {feature.bins}; bin_labels names {len(labels)}"
        )
    return describe(feature, FIRST_VALUE + len(edges) + 1, edges), labels


def bins_table(labels: list[str], counts: list[int]) -> pl.DataFrame:
    """The vocabulary of a feature in bins; `counts` has padding and unknown, too."""
    index = pl.Series("index", range(len(counts)), dtype=pl.Int32)
    return pl.DataFrame({"value": [None, None, *labels], "index": index, "count": pl.Series(counts, dtype=pl.Int64)})


def bin_starts(bins: int, number: int) -> list[int]:
    """The places, among `number` sorted values, at which each of `bins` equal parts but the first begins."""
    return [k * number // bins for k in range(1, bins)]


def quantile_edges(starts: list[float], smallest: float) -> list[float]:
    """Bin edges from the values at `bin_starts`: each once, and none that leaves the first bin empty."""
    return [float(edge) for edge in sorted(set(starts)) if edge > smallest]


def weighted_quantile_edges(values: NDArray, weights: NDArray[np.int64], bins: int) -> list[float]:
    """The same, of `values` that count as often as their weights say."""
    order = np.argsort(values, kind="stable")
    values, sums = values[order], np.cumsum(weights[order])
    if not len(values) or not sums[-1]:
        return []
    counted = values[weights[order] > 0]
    starts = values[np.searchsorted(sums, bin_starts(bins, int(sums[-1])), side="right")]
    return quantile_edges(starts.tolist(), float(counted[0]))


def scaled(values: pl.Series, feature: PreparedFeature) -> pl.Series:
    """A number as the model sees it: standardised, 0 where it is missing."""
    return ((values - feature.mean) / feature.deviation).fill_null(0.0).cast(pl.Float32)


def bin_index(values: pl.Series, edges: list[float]) -> pl.Series:
    """2 + the number of edges <= value (int32), and 1 where the value is null."""
    found = np.searchsorted(np.asarray(edges, np.float64), values.fill_null(0).to_numpy(), side="right")
    index = pl.DataFrame({"index": (found + FIRST_VALUE).astype(np.int32), "null": values.is_null()})
    return index.select(pl.when("null").then(pl.lit(UNKNOWN, pl.Int32)).otherwise("index").alias("index"))["index"]


def encode_lists(offsets: NDArray, index: NDArray[np.int32]) -> pa.ListArray:
    """Lists of indices; what is unknown in a list counts once. `index` has the values of all lists."""
    unknown = np.flatnonzero(index == UNKNOWN)
    row = np.searchsorted(offsets, unknown, side="right") - 1
    again = unknown[1:][row[1:] == row[:-1]]
    if len(again):
        kept = np.ones(len(index), dtype=bool)
        kept[again] = False
        before = np.concatenate([[0], np.cumsum(kept)])
        offsets, index = before[offsets], index[kept]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(index))


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
