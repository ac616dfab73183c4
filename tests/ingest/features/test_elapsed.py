"""Ages from dates, and from integers that are years or count since 1970."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.schema import DataConfig
from ingest.durations import parse_duration
from ingest.errors import InputError
from ingest.features.feature import Feature
from ingest.prepare.pipeline import prepare

HOUR = 3_600_000
YEARS = [1995, 2019, 2020, None]
Refused = Callable[..., str]


def milliseconds(year: int, month: int = 1, day: int = 1) -> int:
    return round(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)


def config_of(folder: Path, released: pa.Array, of: str = "item", **more: Any) -> DataConfig:
    """Four users have four items each at the end of 2020; `released` has a value for each item."""
    start = milliseconds(2020, 12, 31)
    table = {"user_id": [i // 4 for i in range(16)], "item_id": [(i + i // 4) % 4 for i in range(16)]}
    table |= {"timestamp": pa.array([start // 1000 + i for i in range(16)])}
    if of == "item":
        pq.write_table(pa.table({"item_id": range(4), "released": released}), folder / "items.parquet")
        more = {"items": str(folder / "items.parquet")} | more
    else:
        table["released"] = released.take(pa.array(table["item_id"]))
    pq.write_table(pa.table(table), folder / "events.parquet")
    feature = {"name": "age", "kind": "elapsed", "column": "released", "of": of, "bins": ["1y", "10y"]}
    feature |= {key: more.pop(key) for key in ("unit",) if key in more}
    content = {"events": str(folder / "events.parquet"), "time_unit": "s", "features": [feature]}
    return DataConfig.model_validate(content | more)


def bins(folder: Path) -> dict[int, int]:
    """The bin of each event's item among the rows of test."""
    ids = pq.read_table(folder / "out/items.parquet")["id"].to_pylist()
    rows = pq.read_table(folder / "out/test/part-00000-000.parquet").to_pylist()
    return {ids[item]: index for row in rows for item, index in zip(row["item"], row["age"], strict=True)}


@pytest.mark.parametrize("kind", [pa.int16(), pa.uint32(), pa.int64(), pa.float64()])
def test_a_year_is_its_first_of_january(tmp_path: Path, kind: pa.DataType) -> None:
    prepare(config_of(tmp_path, pa.array(YEARS, kind), unit="year"), str(tmp_path / "out"), lambda _: None)
    items = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    found = {row["id"]: row["age"] for row in items if row["id"] is not None}
    assert found == {0: milliseconds(1995), 1: milliseconds(2019), 2: milliseconds(2020), 3: None}
    labels = pq.read_table(tmp_path / "out/vocab/age.parquet")["value"].to_pylist()
    assert labels == ["<padding>", "<unknown>", "< 1y", "1y - 10y", ">= 10y"]


def test_years_of_events(tmp_path: Path) -> None:
    """2020 had 366 days, so that its last one is a year of 365 days after its first."""
    config = config_of(tmp_path, pa.array(YEARS, pa.int32()), "event", unit="year")
    prepare(config, str(tmp_path / "out"), lambda _: None)
    assert bins(tmp_path) == {0: 4, 1: 3, 2: 3, 3: 1}


def test_the_first_and_the_last_year(tmp_path: Path) -> None:
    config = config_of(tmp_path, pa.array([1, 9999, 1970, 1969]), unit="year")
    prepare(config, str(tmp_path / "out"), lambda _: None)
    items = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    found = {row["id"]: row["age"] for row in items if row["id"] is not None}
    assert found == {0: -62_135_596_800_000, 1: 253_370_764_800_000, 2: 0, 3: -365 * 24 * HOUR}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_integers_of_a_unit_of_their_own(tmp_path: Path, unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    moments = pa.array([None if year is None else milliseconds(year) // 1000 * per_second for year in YEARS])
    prepare(config_of(tmp_path, moments, unit=unit), str(tmp_path / "out"), lambda _: None)
    items = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    assert [row["age"] for row in items if row["id"] == 1] == [milliseconds(2019)]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    def run(*arguments: Any, **more: Any) -> str:
        with pytest.raises(InputError) as caught:
            prepare(config_of(tmp_path, *arguments, **more), str(tmp_path / "out"), lambda _: None)
        return str(caught.value)

    return run


@pytest.mark.parametrize("bad", [0, 10_000, -5, 1995.5])
def test_a_number_that_is_no_year(refused: Refused, bad: float) -> None:
    message = refused(pa.array([2000, 2001, bad, 2002]), unit="year")
    for part in ("items.parquet", "'released'", f"{bad:g} is no year from 1 to 9999", "row 2"):
        assert part in message


def test_integers_without_a_unit_are_told_of_it(refused: Refused, tmp_path: Path) -> None:
    """Seconds since 1970 that could be years are no seconds; a log with dates has no unit for integers."""
    message = refused(pa.array(YEARS))
    for part in ("items.parquet", "'released'", "years, it seems, such as 1995", "unit: year", "unit: s"):
        assert part in message
    prepare(config_of(tmp_path, pa.array(YEARS), unit="s"), str(tmp_path / "out"), lambda _: None)
    dates = pa.array([milliseconds(2020, 12, 31) + i for i in range(16)], pa.timestamp("ms"))
    config = config_of(tmp_path, pa.array(YEARS), time_unit="datetime")
    table = pq.read_table(tmp_path / "events.parquet").set_column(2, "timestamp", dates)
    pq.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(InputError, match=r"'released' is int64, takes a timestamp or a date.*'age'.*unit: year"):
        prepare(config, str(tmp_path / "dates"), lambda _: None)


def test_text_is_no_year(refused: Refused) -> None:
    assert "'released' is string, takes a number" in refused(pa.array(["1995", "x", "y", "z"]), unit="year")


def test_spans_of_years() -> None:
    assert parse_duration("2y") == 2 * parse_duration("365d") == 730 * 24 * HOUR
    assert parse_duration(" 0.5 y ") == parse_duration("182.5d")
    with pytest.raises(ValueError, match=r"ms, s, m, h, d, w or y \(365 days\)"):
        parse_duration("1 year")


def test_a_unit_goes_with_elapsed_alone() -> None:
    with pytest.raises(ValueError, match="kind number does not take it"):
        Feature.model_validate({"name": "year", "kind": "number", "unit": "year"})
