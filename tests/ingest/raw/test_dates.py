"""Every form in which Parquet holds a date gives the date that Python's datetime says, or is refused by name."""

from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.errors import InputError
from ingest.raw.columns import read_columns

EPOCH = dt.datetime(1970, 1, 1)
EDGES = [
    dt.datetime.min, dt.datetime(1, 1, 1, 0, 0, 0, 1), dt.datetime(1582, 10, 15), dt.datetime(1677, 9, 21),
    dt.datetime(1816, 3, 29), dt.datetime(1899, 12, 31), dt.datetime(1969, 12, 31, 23, 59, 59, 999_999), EPOCH,
    dt.datetime(2024, 2, 29, 12, 30, 15, 123_456), dt.datetime(2262, 4, 12), dt.datetime(9999, 12, 31), dt.datetime.max,
]  # fmt: skip
NANOSECONDS = dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1)
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def milliseconds(moment: dt.datetime) -> int:
    return (moment - EPOCH) // dt.timedelta(milliseconds=1)


def read(path: Path, unit: str = "datetime") -> list[int | None]:
    return read_columns(str(path), ["at"])["at"].moments(unit).to_list()


def raw(values: list[int | None], kind: pa.DataType) -> pa.Array:
    """The integers as they stand, in Arrow's type of a moment."""
    return pa.array(values, pa.int32() if pa.types.is_date32(kind) else pa.int64()).view(kind)


def write(path: Path, array: pa.Array, **options: Any) -> Path:
    pq.write_table(pa.table({"at": array}), path, **options)
    return path


FORMS: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
    **{f"int96 of {u}": (pa.timestamp(u), {"use_deprecated_int96_timestamps": True}) for u in ("s", "ms", "us", "ns")},
    **{
        f"int96, {name}": (pa.timestamp("us"), {"use_deprecated_int96_timestamps": True, **options})
        for name, options in {
            "plain": {"use_dictionary": False},
            "no schema of Arrow": {"store_schema": False},
            "pages of version 2": {"data_page_version": "2.0"},
        }.items()
    },
    **{f"timestamp {u}": (pa.timestamp(u), {}) for u in ("s", "ms", "us", "ns")},
    **{f"timestamp {u} of Kolkata": (pa.timestamp(u, "Asia/Kolkata"), {}) for u in ("s", "ms", "us", "ns")},
    "timestamp us, no schema of Arrow": (pa.timestamp("us", "UTC"), {"store_schema": False}),
    "timestamp ns, stored as us": (pa.timestamp("ns"), {"version": "1.0"}),
    "date32": (pa.date32(), {}),
    "date64": (pa.date64(), {}),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(st.datetimes(), max_size=20))
def test_a_date_is_the_date_that_it_says(form: str, drawn: list[dt.datetime], tmp_path: Path) -> None:
    kind, options = FORMS[form]
    moments = EDGES + drawn
    if pa.types.is_date(kind):
        moments = [dt.datetime.combine(moment, dt.time()) for moment in moments]
        per_day = 1 if pa.types.is_date32(kind) else 86_400_000
        values = [(moment - EPOCH).days * per_day for moment in moments]
    elif kind.unit == "ns":
        moments = [moment for moment in moments if NANOSECONDS[0] < moment < NANOSECONDS[1]]
        values = [(moment - EPOCH) // dt.timedelta(microseconds=1) * 1_000 for moment in moments]
    else:
        step = dt.timedelta(microseconds=UNITS[kind.unit])
        values = [(moment - EPOCH) // step for moment in moments]
        moments = [EPOCH + value * step for value in values]
    path = write(tmp_path / "dates.parquet", raw([*values, None], kind), **options)
    assert read(path) == [*map(milliseconds, moments), None]


@pytest.mark.parametrize("said", [pa.timestamp("ns"), pa.timestamp("s"), pa.timestamp("ns", "Europe/Berlin")])
@pytest.mark.parametrize("stored", ["ms", "us"])
def test_what_the_file_holds_counts_and_not_arrows_note(said: pa.DataType, stored: str, tmp_path: Path) -> None:
    """A file whose note of Arrow's schema says nanoseconds, which do not reach its dates."""
    note = base64.b64encode(pa.schema([("at", said)]).serialize().to_pybytes())
    table = pa.table({"at": pa.array(EDGES, pa.timestamp(stored, said.tz), from_pandas=False)})
    with pq.ParquetWriter(tmp_path / "noted.parquet", table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": note.decode()})
    step = dt.timedelta(microseconds=UNITS[stored])
    assert read(tmp_path / "noted.parquet") == [milliseconds(EPOCH + (m - EPOCH) // step * step) for m in EDGES]


YEAR_10000, YEAR_0 = 253_402_300_800, -62_135_596_801


@pytest.mark.parametrize("seconds", [YEAR_10000, YEAR_0])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pa.timestamp("s"), {}),
        (pa.timestamp("ms"), {}),
        (pa.timestamp("us", "UTC"), {}),
        (pa.timestamp("us"), {"use_deprecated_int96_timestamps": True}),
        (pa.date32(), {}),
        (pa.date64(), {}),
    ],
)
def test_a_date_beyond_the_calendar_is_refused(
    seconds: int, kind: pa.DataType, options: dict[str, Any], tmp_path: Path
) -> None:
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000}.get(getattr(kind, "unit", "ms"), 0)
    value = seconds // 86_400 if pa.types.is_date32(kind) else seconds * per_second
    if pa.types.is_date64(kind):
        value = seconds // 86_400 * 86_400_000
    path = write(tmp_path / "dates.parquet", raw([0, value], kind), **options)
    with pytest.raises(InputError, match=r"dates\.parquet: column 'at': -?\d.* is not between the years .*row 1"):
        read(path)


def test_the_smallest_of_nanoseconds_is_no_date(tmp_path: Path) -> None:
    """What numpy means by NaT, written as a value."""
    path = write(tmp_path / "dates.parquet", raw([-(2**63)], pa.timestamp("ns")))
    with pytest.raises(InputError, match=r"column 'at': (NaT|-9223372036854775808) is not between the years"):
        read(path)


@pytest.mark.parametrize("form", ["int96 of us", "timestamp us", "date32"])
def test_an_event_of_a_far_date_lies_in_the_future(form: str, tmp_path: Path) -> None:
    kind, options = FORMS[form]
    array = pa.array([dt.datetime(2020, 1, 1), dt.datetime(9999, 12, 31)], pa.timestamp("us")).cast(kind)
    write(tmp_path / "log.parquet", array, **options)
    with pytest.raises(InputError, match=r"column 'at': 9999-12-31.* lies in the future \(in row 1\)"):
        read_columns(str(tmp_path / "log.parquet"), ["at"])["at"].times("datetime")
