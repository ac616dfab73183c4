"""Columns of raw Parquet files: each checks its own type and values, and turns into one of a few plain types.

A column that a file lacks may be given by the names of its folders (`day=2024-01-31`). A refusal names the file, the
column, the value and its row (counted from 0).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.arrow_files import open_arrow
from ingest.errors import InputError
from ingest.raw.files import folder_values

DAY_MS = 86_400_000
LARGEST = 3.4028234663852886e38
"""The largest number of fp32, in which shards and models have numbers."""
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_YEAR_1_MS, _YEAR_1971_MS, _YEAR_9999_MS = -62_135_596_800_000, 31_536_000_000, 253_402_300_799_999
NOT_A_TIME = -(2**63)
"""The integer that numpy takes for no moment."""
READ_BYTES = 2**20
"""Read from a raw file at a time, for each column."""


class RawFile:
    """A raw Parquet file of which the columns `names` are read, and no others; a context manager."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self.url, self.names = url, list(dict.fromkeys(names))
        with self._readable():
            self.source = open_arrow(url)
            # nanoseconds, the default for INT96, hold no date after 2262, and overflow; milliseconds hold all of INT96
            self.file = pq.ParquetFile(self.source, buffer_size=READ_BYTES, coerce_int96_timestamp_unit="ms")
            there = self.file.schema_arrow.names
        self.in_file = [name for name in self.names if name in there]
        self.of_folders = {key: value for key, value in folder_values(url).items() if key not in there}
        for name in self.names:
            if name not in there and name not in self.of_folders and self.file.metadata.num_rows:
                raise InputError(f"{url}: no column {name!r}; there are: {', '.join([*there, *self.of_folders])}")
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
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{self.url}: not a Parquet file that can be read: {_sentence(error)}") from None
        except FileNotFoundError:
            raise InputError(f"{self.url}: is not there any more") from None
        except OSError as error:
            if error.errno is None:  # Arrow's of what it has read, and not of reading it
                raise InputError(f"{self.url}: this Parquet file is damaged: {_sentence(error)}") from None
            raise

    @property
    def rows(self) -> list[int]:
        """The rows of each row group."""
        metadata = self.file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def empty(self) -> dict[str, Column]:
        """The columns without any row."""
        return self._columns(self.file.schema_arrow.empty_table(), 0, 0)

    def whole(self) -> dict[str, Column]:
        """The columns with all their rows."""
        with self._readable():
            table = self.file.read(columns=self.in_file)
        return self._columns(table, self.file.metadata.num_rows, 0)

    def _columns(self, table: pa.Table, rows: int, before: int) -> dict[str, Column]:
        def column(name: str) -> Column:
            if name in self.in_file:
                return Column(self.url, name, table[name], before).checked()
            values = pa.repeat(pa.scalar(self.of_folders.get(name)), rows)
            return Column(self.url, name, pa.chunked_array([values]), before, of_folder=True)

        return {name: column(name) for name in self.names}

    def integer_range(self, name: str) -> tuple[int, int] | None:
        """The smallest and the largest value of an integer column as the footer has them, None where it does not."""
        if name in self.of_folders:
            value = self.of_folders[name]
            return (value, value) if isinstance(value, int) else None
        if name not in self.in_file or not _is_integer(self.file.schema_arrow.field(name).type):
            return None
        metadata = self.file.metadata
        place = next(at for at in range(len(metadata.schema)) if metadata.schema.column(at).path == name)
        found = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
        if not all(part and (part.has_min_max or not part.num_values) for part in found):
            return None
        known = [(part.min, part.max) for part in found if part.has_min_max]
        return (min(low for low, _ in known), max(high for _, high in known)) if known else None

    def batches(self, first: int, last: int, before: int, rows: int) -> Iterator[dict[str, Column]]:
        """The row groups from `first` to before `last`, about `rows` rows at a time; `before`: the rows before them."""
        stream = self.file.iter_batches(rows, list(range(first, last)), columns=self.in_file, use_threads=False)
        while True:
            with self._readable():
                batch = next(stream, None)
            if batch is None:
                return
            yield self._columns(pa.Table.from_batches([batch]), batch.num_rows, before)
            before += batch.num_rows


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())


def read_columns(url: str, names: Sequence[str]) -> dict[str, Column]:
    """The columns `names` of the Parquet file `url` whole, and no others."""
    with RawFile(url, names) as file:
        return file.whole()


@dataclass(frozen=True)
class Column:
    file: str
    name: str
    data: pa.ChunkedArray
    before: int = 0
    """The rows of the file that come before these."""
    of_folder: bool = False
    """Whether the name of a folder gives the value, and so an integer or text, whatever is meant."""

    def checked(self) -> Column:
        """The column, whose text is UTF-8; Parquet takes any bytes for text, and so do Arrow and Polars."""
        try:
            self.data.validate(full=True)
        except pa.ArrowInvalid as error:
            bad = (row for row in range(len(self.data)) if not _can_be_decoded(self.data[row]))
            row = next((f" (in row {row + self.before})" for row in bad), "")
            raise InputError(f"{self.file}: column {self.name!r}: {_sentence(error)}{row}") from None
        return self

    def ids(self) -> pl.Series:
        """User or item ids: integers or strings, in the type that they have."""
        series = self._plain(_is_id, "an integer or a string")
        self._refuse(series.is_null(), "has no value")
        return series

    def times(self, unit: str) -> pl.Series:
        """Times of events: milliseconds since 1970, or positions. None may be missing, none in the future."""
        if unit == "datetime":
            self = self._of_folder_as(pa.timestamp("ms"))
        self._refuse(self._series().is_null(), "has no value")
        if pa.types.is_null(self.data.type):
            return self._nothing(pl.Int64)
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
            return self._nothing(pl.Int64)
        if unit in _PER_SECOND and _is_integer(self.data.type):
            return self._milliseconds(unit, _YEAR_1_MS, _YEAR_9999_MS, f"is no time; is data.time_unit: {unit} right?")
        self = self._of_folder_as(pa.timestamp("ms"))
        self._require(_is_moment, "a timestamp or a date")
        return self._milliseconds("datetime", _YEAR_1_MS, _YEAR_9999_MS, "is not between the years 1 and 9999")

    def numbers(self) -> pl.Series:
        """Float64, with nulls; NaN, infinity and what fp32 has not are refused, integers over 2^53 are rounded."""
        self = self._of_folder_as(pa.float64())
        self._require(_is_number, "a number")
        series = _to_polars(self.data.cast(pa.float64(), safe=False))
        self._refuse(~series.is_finite().fill_null(True), "takes finite numbers, not")
        self._refuse((series.abs() > LARGEST).fill_null(False), f"takes numbers up to {LARGEST:.2g}, not")
        return series

    def durations(self) -> pl.Series:
        series = self.numbers()
        self._refuse(series.is_null(), "has no value")
        self._refuse(series < 0, "takes numbers from 0, not")
        return series

    def flags(self) -> pl.Series:
        """Boolean; null is false."""
        self = self._of_folder_as(pa.bool_())
        self._require(_is_flag, "a boolean or an integer 0 or 1")
        series = self._series()
        if series.dtype.is_integer():
            self._refuse(~series.is_in([0, 1]).fill_null(True), "takes flags 0 and 1, not")
        return series.cast(pl.Boolean).fill_null(False)

    def category(self) -> pl.Series:
        return _boolean_as_text(self._plain(_is_category, "a string, an integer or a boolean (kind category)"))

    def categories(self) -> pl.Series:
        """Lists, each value in them once; a missing list is an empty one."""
        data = self.data
        self._require(_is_categories, "a list of strings, integers or booleans (kind categories)")
        if pa.types.is_null(data.type):
            return self._nothing(pl.List(pl.Null)).fill_null([])
        value_type = data.type.value_type
        if pa.types.is_dictionary(value_type):
            data = data.cast(pa.large_list(value_type.value_type))
        elif pa.types.is_fixed_size_list(data.type):
            data = data.cast(pa.large_list(value_type))
        series = _boolean_as_text(_to_polars(data))
        return series.fill_null([]).list.drop_nulls().list.unique(maintain_order=True)

    def text(self) -> pl.Series:
        allowed = _is_id if self.of_folder else lambda kind: _is_text(kind) or pa.types.is_null(kind)
        return self._plain(allowed, "a string").cast(pl.String)

    def _series(self) -> pl.Series:
        return _to_polars(self.data)

    def _nothing(self, kind: pl.DataType | type[pl.DataType]) -> pl.Series:
        return pl.Series(self.name, [None] * len(self.data), kind)

    def _of_folder_as(self, kind: pa.DataType) -> Column:
        """The column with the text that a folder's name gives read as `kind`; any other as it is."""
        if not self.of_folder or not _is_text(self.data.type):
            return self
        try:
            return replace(self, data=self.data.cast(kind))
        except pa.ArrowInvalid:
            raise InputError(
                f"{self.file}: column {self.name!r}, which the name of the folder gives, is {str(self.data[0])!r}, "
                f"takes a value of type {kind}"
            ) from None

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
            raw, unit = _to_polars(self.data.cast(pa.int32())).cast(pl.Int64) * 86_400, "s"
        elif _is_integer(kind):
            raw = self._int64(self._series())
        else:
            raw, unit = _to_polars(self.data.cast(pa.int64())), "ms" if pa.types.is_date64(kind) else kind.unit
        scale = 1_000 if unit == "s" else 1
        coarse = raw // max(_PER_SECOND[unit] // 1_000, 1)
        bad = (coarse < earliest // scale) | (coarse > latest // scale) | (raw == NOT_A_TIME)
        self._refuse(bad.fill_null(False), problem, value_first=True)
        return coarse * scale

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


def _can_be_decoded(scalar: pa.Scalar) -> bool:
    try:
        scalar.as_py()
    except UnicodeDecodeError:
        return False
    except (ValueError, OverflowError):  # a moment that Python's datetime cannot hold
        pass
    return True


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_id(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(plain) or _is_integer(plain) or bool(pa.types.is_null(plain))


def _is_flag(kind: pa.DataType) -> bool:
    return _is_integer(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_category(kind: pa.DataType) -> bool:
    return _is_id(kind) or bool(pa.types.is_boolean(kind))


def _is_categories(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(pa.types.is_null(kind)) or (bool(listed) and _is_category(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(plain or pa.types.is_null(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))
