"""What prepare makes of the types that a log's columns can have: times, positions, files that differ."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare
from tests.ingest.prepare.prepare_reference import HOUR, START
from tests.ingest.prepare.test_prepare import items_of, read_rows, simple_log


@pytest.mark.parametrize(
    ("unit", "kind", "factor"),
    [("s", pa.int32(), 1e-3), ("ms", pa.int64(), 1), ("us", pa.int64(), 1e3), ("ns", pa.uint64(), 1e6)]
    + [("datetime", pa.timestamp(u), f) for u, f in (("s", 1e-3), ("ms", 1), ("us", 1e3), ("ns", 1e6))]
    + [("datetime", pa.timestamp("us", "America/New_York"), 1e3), ("datetime", pa.timestamp("ms", "+02:00"), 1)]
    + [("datetime", pa.date32(), 1 / (24 * HOUR)), ("datetime", pa.date64(), 1)],
)
def test_times_of_any_unit_become_milliseconds(tmp_path: Path, unit: str, kind: pa.DataType, factor: float) -> None:
    day = 24 * HOUR
    times = [18_000 * day + i * day for i in range(4)]
    raw = pa.array([round(time * factor) for time in times])
    raw = raw.cast(pa.int32()).cast(kind) if kind == pa.date32() else raw.cast(kind)
    table = pa.table({"user_id": [1] * 4, "item_id": [1, 2, 3, 4], "timestamp": raw})
    pq.write_table(table, tmp_path / "events.parquet")
    config = DataConfig.model_validate({"events": str(tmp_path / "events.parquet"), "time_unit": unit})
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    assert read_rows(tmp_path / "out", manifest, "test")[0]["time"] == times


def test_positions_are_kept(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["u"] * 4, "item_id": [1, 2, 3, 4], "timestamp": pa.array([3, 0, 1, 2], pa.int16())})
    pq.write_table(table, tmp_path / "events.parquet")
    config = DataConfig.model_validate({"events": str(tmp_path / "events.parquet"), "time_unit": "position"})
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    assert manifest.time_unit == "position"
    assert read_rows(tmp_path / "out", manifest, "test")[0]["time"] == [0, 1, 2, 3]
    assert items_of(tmp_path / "out", manifest, "train") == [[2, 3]]


def test_types_may_differ_between_files_where_they_agree_in_kind(tmp_path: Path) -> None:
    """Narrow and wide integers, dictionaries and strings, and a column without any value are one column."""
    times = pa.array([START, START + 1])
    parts = [
        {"user_id": pa.array([1, 1], pa.int32()), "item_id": pa.array(["a", "b"]), "c": pa.nulls(2)},
        {
            "user_id": pa.array([1, 2], pa.uint64()),
            "item_id": pa.array(["a", "b"]).dictionary_encode(),
            "c": ["x", "y"],
        },
        {"user_id": pa.array([1, 2], pa.int64()), "item_id": pa.array(["c", "b"], pa.large_string()), "c": [None, "x"]},
    ]
    (tmp_path / "events").mkdir()
    for i, part in enumerate(parts):
        pq.write_table(pa.table({**part, "timestamp": times}), tmp_path / f"events/{i}.parquet")
    content = {"events": str(tmp_path / "events"), "time_unit": "ms", "features": [{"name": "c"}]}
    manifest = prepare(DataConfig.model_validate(content), str(tmp_path / "out"), lambda _: None)
    assert items_of(tmp_path / "out", manifest, "train") == [["a", "a"], ["b", "b"]]


def test_an_empty_file_among_others_is_fine(tmp_path: Path) -> None:
    config = simple_log(tmp_path / "events", [("u", item, item) for item in range(5)])
    table = pq.read_table(tmp_path / "events/events.parquet")
    pq.write_table(table[:0], tmp_path / "events/a.parquet")
    content = config.model_dump() | {"events": str(tmp_path / "events")}
    manifest = prepare(DataConfig.model_validate(content), str(tmp_path / "out"), lambda _: None)
    assert manifest.counts["events"] == 5


@pytest.mark.parametrize(
    ("log", "table", "both"),
    [(pa.int8(), pa.int64(), pa.int64()), (pa.int64(), pa.int8(), pa.int64()), (pa.uint32(), pa.uint64(), pa.uint64())],
)
def test_items_of_the_item_table_may_have_wider_or_narrower_ids_than_the_log(
    tmp_path: Path, log: pa.DataType, table: pa.DataType, both: pa.DataType
) -> None:
    """None is lost, and the log's events find theirs."""
    config = simple_log(tmp_path, [("u", item, item) for item in range(5)])
    events = pq.read_table(tmp_path / "events.parquet")
    pq.write_table(events.set_column(1, "item_id", events["item_id"].cast(log)), tmp_path / "events.parquet")
    more = {pa.int64(): 2**40, pa.int8(): 100, pa.uint64(): 2**63 + 5}[table]
    items = pa.table({"item_id": pa.array([*range(5), more], table), "colour": list("aabbcd")})
    pq.write_table(items, tmp_path / "items.parquet")
    content = {"items": str(tmp_path / "items.parquet"), "features": [{"name": "colour", "of": "item"}]}
    config = DataConfig.model_validate(config.model_dump() | content)
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    ids = pq.read_table(tmp_path / "out/items.parquet")["id"]
    assert ids.type == both
    assert ids.to_pylist() == [None, None, 0, 1, 2, 3, 4, more]
    assert items_of(tmp_path / "out", manifest, "test") == [[0, 1, 2, 3, 4]]


def test_ids_that_no_integer_holds_together_are_refused(tmp_path: Path) -> None:
    config = simple_log(tmp_path, [("u", item - 1, item) for item in range(5)])
    pq.write_table(pa.table({"item_id": pa.array([1, 2**63], pa.uint64())}), tmp_path / "items.parquet")
    content = config.model_dump() | {"items": str(tmp_path / "items.parquet")}
    with pytest.raises(InputError, match=r"events\.parquet: column 'item_id' has -1, but .*items\.parquet has 922"):
        prepare(DataConfig.model_validate(content), str(tmp_path / "out"), lambda _: None)
