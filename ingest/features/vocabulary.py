"""Vocabularies: the values of the training data with their indices, built from counts and looked up.

A vocabulary orders its values by count, the most frequent first, then by value; one that grows keeps the values that it
has, in their places, and orders the new ones so behind them. It is a Parquet file with the columns value, index and
count, in the order of the index, read a row group at a time: tens of millions of values need not fit a task's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrow_files import open_arrow
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE, UNKNOWN

NAMES = ["<padding>", "<unknown>"]
ROWS_AT_ONCE = 4_000_000
"""Rows of counts that are read before they are summed."""


def summed(
    frames: Iterable[pl.DataFrame], shrink: Callable[[pl.DataFrame], pl.DataFrame] = lambda counts: counts
) -> pl.DataFrame:
    """Counts by value, put together: `count` and `total` are summed, of `first` and `appeared` the earliest is kept.

    `shrink` makes counts smaller whenever `ROWS_AT_ONCE` have come together.
    """
    waiting: list[pl.DataFrame] = []
    rows, least = 0, 0
    for frame in frames:
        waiting.append(frame)
        rows += frame.height
        if rows >= max(ROWS_AT_ONCE, 2 * least):
            waiting = [shrink(_grouped(waiting))]
            rows = least = waiting[0].height
    return _grouped(waiting)


def _grouped(frames: list[pl.DataFrame]) -> pl.DataFrame:
    how = {name: pl.col(name).sum() for name in ("count", "total")}
    how |= {name: pl.col(name).min() for name in ("first", "appeared")}
    together = pl.concat(frames)
    return together.group_by("value").agg(expression for name, expression in how.items() if name in together.columns)


def build_vocabulary(
    counted: pl.DataFrame, min_count: int, base: pl.Series | None = None, column: str = ""
) -> pl.DataFrame:
    """The vocabulary of `counted` (value, count, and whatever else, which is kept): rows 0 and 1 have no value.

    `base`: values that it begins with. Row 1 counts the values that are null or too rare. Raises `InputError`, which
    names `column`, where no type holds both.
    """
    if base is not None:
        counted = counted.with_columns(pl.col("value").cast(_common_type(base, counted["value"], column)))
    known = counted.filter(pl.col("value").is_not_null())
    old = pl.Series("value", [], dtype=counted.schema["value"])
    if base is not None:
        old = base.cast(old.dtype).alias("value")
    first = old.to_frame().join(known, on="value", how="left", maintain_order="left")
    first = first.with_columns(pl.col("count").fill_null(0))
    new = known.filter(pl.col("count") >= min_count).join(old.to_frame(), on="value", how="anti")
    kept = pl.concat([first, new.sort("count", "value", descending=[True, False])])
    special = pl.DataFrame(
        {"value": [None, None], "count": [0, int(counted["count"].sum()) - int(kept["count"].sum())]},
        schema={"value": kept.schema["value"], "count": pl.Int64},
    )
    table = pl.concat([special, kept.with_columns(pl.col("count").cast(pl.Int64))], how="diagonal")
    index = pl.int_range(table.height, dtype=pl.Int32).alias("index")
    return table.select("value", index, "count", pl.exclude("value", "count"))


def _common_type(base: pl.Series, new: pl.Series, column: str) -> pl.DataType:
    """The type of `new`, or a wider one of integers, that holds `base`, too."""
    kinds = [new.dtype, *([pl.Int64(), pl.UInt64()] if new.dtype.is_integer() else [])]
    for kind in kinds:
        if all(values.cast(kind, strict=False).null_count() == values.null_count() for values in (base, new)):
            return kind
    odd = base.filter(base.cast(new.dtype, strict=False).is_null())[0]
    raise InputError(
        f"column {column!r} is {new.dtype} now, and the data set that grows has {odd!r}, which no type holds as well: "
        "prepare it anew in another folder"
    )


def named(table: pl.DataFrame) -> pl.DataFrame:
    """A part of a vocabulary with its values as text, padding and unknown named."""
    name = pl.when(pl.col("index") == 0).then(pl.lit(NAMES[0])).when(pl.col("index") == 1).then(pl.lit(NAMES[1]))
    return table.with_columns(name.otherwise(pl.col("value").cast(pl.String)).alias("value"))


def read_parts(url: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """A Parquet file's row groups, one after the other, or their `columns` alone."""
    with open_arrow(url) as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            frame = pl.from_arrow(file.read_row_group(group, columns=columns, use_threads=False))
            assert isinstance(frame, pl.DataFrame)
            yield frame


def look_up(url: str, values: pl.Series) -> NDArray[np.int32]:
    """The index of each of `values`, which are all different, in the vocabulary `url`; 1 where it is not there.

    Values of another type than the vocabulary's are compared as text, integers of another width as integers.
    """
    index = np.full(len(values), UNKNOWN, dtype=np.int32)
    wanted = values.alias("value").to_frame().with_row_index("place")
    for part in read_parts(url, ["value", "index"]):
        known = part.filter(pl.col("index") >= FIRST_VALUE)
        kind = known["value"].dtype
        if kind != values.dtype:
            together = kind if kind.is_integer() and values.dtype.is_integer() else pl.String()
            cast = pl.col("value").cast(together, strict=False)
            known, wanted = known.with_columns(cast), wanted.with_columns(cast)
        found = wanted.join(known, on="value", how="inner")
        index[found["place"].to_numpy()] = found["index"].to_numpy()
    return index
