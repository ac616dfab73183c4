"""Columns of raw Parquet files: each checks its own type and values, and turns into one of a few plain types.

A refusal names the file, the column, the value and its row (counted from 0).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import InputError
from ingest.storage import arrow_filesystem

DAY_MS = 86_400_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_YEAR_1_MS, _YEAR_1971_MS, _YEAR_9999_MS = -62_135_596_800_000, 31_536_000_000, 253_402_300_799_000
_INT64 = 2**63 - 1
READ_BYTES = 2**20
"""Read from a raw file at a time, for each column."""


class RawFile:
    """A raw Parquet file of which the columns `names` are read, and no others; a context manager."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self.url, self.names = url, list(dict.fromkeys(names))
        filesystem, path = arrow_filesystem(url)
        self.source = filesystem.open_input_file(path)
        with self._readable():
            self.file = pq.ParquetFile(self.source, buffer_size=READ_BYTES)
        there = self.file.schema_arrow.names
        for name in self.names:
            if name not in there:
                raise InputError(f"{url}: no column {name!r}; there are: {', '.join(there)}")
            if there.count(name) > 1:
                raise InputError(f"{url}: column {name!r} is there {there.count(name)} times")

    def __enter__(self) -> RawFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.url}: not a Parquet file that can be read: {_sentence(error)}") from None
        except OSError as error:
            if "Corrupt" in str(error) or "deserialize" in str(error).lower():
                raise InputError(f"{self.url}: this Parquet file is damaged: {_sentence(error)}") from None
            raise

    @property
    def rows(self) -> list[int]:
        """The rows of each row group."""
        metadata = self.file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def empty(self) -> dict[str, Column]:
        """The columns without any row."""
        table = self.file.schema_arrow.empty_table()
        return {name: Column(self.url, name, table[name]) for name in self.names}

    def batches(self, first: int, last: int, before: int, rows: int) -> Iterator[dict[str, Column]]:
        """The row groups from `first` to before `last`, about `rows` rows at a time; `before`: the rows before them."""
        stream = self.file.iter_batches(rows, list(range(first, last)), columns=self.names, use_threads=False)
        while True:
            with self._readable():
                batch = next(stream, None)
            if batch is None:
                return
            table = pa.Table.from_batches([batch])
            yield {name: Column(self.url, name, table[name], before) for name in self.names}
            before += batch.num_rows


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())


def read_columns(url: str, names: Sequence[str]) -> dict[str, Column]:
    """The columns `names` of the Parquet file `url` whole, and no others."""
    with RawFile(url, names) as file, file._readable():
        table = file.file.read(columns=file.names)
    return {name: Column(url, name, table[name]) for name in file.names}


@dataclass(frozen=True)
class Column:
    file: str
    name: str
    data: pa.ChunkedArray
    before: int = 0
    """The rows of the file that come before these."""

    def ids(self) -> pl.Series:
        """User or item ids: integers or strings, in the type that they have."""
        series = self._plain(_is_id, "an integer or a string")
        self._refuse(series.is_null(), "has no value")
        return series

    def times(self, unit: str) -> pl.Series:
        """Times of events: milliseconds since 1970, or positions. None may be missing, none in the future."""
        self._refuse(self._series().is_null(), "has no value")
        if unit == "position":
            return self._int64(self._plain(_is_integer, "an integer (data.time_unit is position)"))
        tomorrow = int(time.time() * 1000) + DAY_MS
        if unit == "datetime":
            self._require(_is_moment, "a timestamp or a date (integers need another data.time_unit: s, ms, us or ns)")
            return self._milliseconds(unit, _YEAR_1_MS, tomorrow, "lies in the future")
        self._require(_is_integer, f"an integer (data.time_unit is {unit})")
        hint = f"is no time from 1971 to now; is data.time_unit: {unit} right?"
        return self._milliseconds(unit, _YEAR_1971_MS, tomorrow, hint)

    def moments(self, unit: str) -> pl.Series:
        """Dates that an `elapsed` counts from: milliseconds since 1970, or null."""
        if pa.types.is_null(self.data.type):
            return pl.Series(self.name, [None] * len(self.data), pl.Int64)
        if unit in _PER_SECOND and _is_integer(self.data.type):
            return self._milliseconds(unit, _YEAR_1_MS, _YEAR_9999_MS, f"is no time; is data.time_unit: {unit} right?")
        self._require(_is_moment, "a timestamp or a date")
        return self._milliseconds("datetime", _YEAR_1_MS, _YEAR_9999_MS, "is not between the years 1 and 9999")

    def numbers(self) -> pl.Series:
        """Float64, with nulls; NaN and infinity are refused."""
        self._require(_is_number, "a number")
        series = _to_polars(self.data.cast(pa.float64()))
        self._refuse(~series.is_finite().fill_null(True), "takes finite numbers, not")
        return series

    def durations(self) -> pl.Series:
        series = self.numbers()
        self._refuse(series.is_null(), "has no value")
        self._refuse(series < 0, "takes numbers from 0, not")
        return series

    def flags(self) -> pl.Series:
        """Boolean; null is false."""
        self._require(lambda kind: pa.types.is_boolean(kind) or _is_integer(kind), "a boolean or an integer 0 or 1")
        series = self._series()
        if series.dtype != pl.Boolean:
            self._refuse(~series.is_in([0, 1]).fill_null(True), "takes flags 0 and 1, not")
        return series.cast(pl.Boolean).fill_null(False)

    def category(self) -> pl.Series:
        return _boolean_as_text(self._plain(_is_category, "a string, an integer or a boolean (kind category)"))

    def categories(self) -> pl.Series:
        """Lists, each value in them once; a missing list is an empty one."""
        data = self.data
        self._require(_is_categories, "a list of strings, integers or booleans (kind categories)")
        if pa.types.is_null(data.type):
            return pl.Series(self.name, [[]] * len(data), pl.List(pl.Null))
        value_type = data.type.value_type
        if pa.types.is_dictionary(value_type):
            data = data.cast(pa.large_list(value_type.value_type))
        elif pa.types.is_fixed_size_list(data.type):
            data = data.cast(pa.large_list(value_type))
        series = _boolean_as_text(_to_polars(data))
        return series.fill_null([]).list.drop_nulls().list.unique(maintain_order=True)

    def text(self) -> pl.Series:
        return self._plain(lambda kind: _is_text(kind) or pa.types.is_null(kind), "a string").cast(pl.String)

    def _series(self) -> pl.Series:
        return _to_polars(self.data)

    def _plain(self, allowed: Callable[[pa.DataType], bool], description: str) -> pl.Series:
        self._require(allowed, description)
        data = self.data
        return _to_polars(data.cast(data.type.value_type) if pa.types.is_dictionary(data.type) else data)

    def _int64(self, series: pl.Series) -> pl.Series:
        cast = series.cast(pl.Int64, strict=False)
        self._refuse(cast.is_null() & series.is_not_null(), "does not fit 64 bits:")
        return cast

    def _milliseconds(self, unit: str, earliest: int, latest: int, problem: str) -> pl.Series:
        kind = self.data.type
        if pa.types.is_date32(kind):
            raw, per_second = _to_polars(self.data.cast(pa.int32())).cast(pl.Int64) * 86_400, 1
        elif pa.types.is_date64(kind):
            raw, per_second = _to_polars(self.data.cast(pa.int64())), 1_000
        elif pa.types.is_timestamp(kind):
            raw, per_second = _to_polars(self.data.cast(pa.int64())), _PER_SECOND[kind.unit]
        else:
            raw, per_second = self._int64(self._series()), _PER_SECOND[unit]
        low, high = (max(-_INT64, min(_INT64, bound * per_second // 1_000)) for bound in (earliest, latest))
        self._refuse(((raw < low) | (raw > high)).fill_null(False), problem, value_first=True)
        return raw * 1_000 if per_second == 1 else raw // (per_second // 1_000)

    def _require(self, allowed: Callable[[pa.DataType], bool], description: str) -> None:
        if not allowed(self.data.type):
            raise InputError(f"{self.file}: column {self.name!r} is {self.data.type}, takes {description}")

    def _refuse(self, bad: pl.Series, problem: str, value_first: bool = False) -> None:
        """Raise `InputError` where any of `bad` is true, with the first such value and its row."""
        count = int(bad.sum() or 0)
        if count == 0:
            return
        row = int(bad.arg_true()[0])
        scalar = self.data[row]
        row += self.before
        rows = f"{count} rows, the first is row {row}" if count > 1 else f"row {row}"
        if not scalar.is_valid:
            raise InputError(f"{self.file}: column {self.name!r} {problem} in {rows}")
        said = f"{_show(scalar)} {problem}" if value_first else f"{problem} {_show(scalar)}"
        joint = ":" if value_first else ""
        raise InputError(f"{self.file}: column {self.name!r}{joint} {said} (in {rows})")


def _to_polars(data: pa.ChunkedArray) -> pl.Series:
    series = pl.from_arrow(data)
    assert isinstance(series, pl.Series)
    return series


def _boolean_as_text(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Boolean:
        return series.cast(pl.String)
    if series.dtype == pl.List(pl.Boolean):
        return series.cast(pl.List(pl.String))
    return series


def _show(scalar: pa.Scalar) -> str:
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError):  # a moment that Python's datetime cannot hold
        value = scalar.value
    return repr(value) if isinstance(value, str) else str(value)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_category(kind: pa.DataType) -> bool:
    return _is_id(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_categories(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(pa.types.is_null(kind)) or (bool(listed) and _is_category(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(plain or pa.types.is_null(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))
