"""Bad input is refused in one sentence that names the file, the column and the value."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare

START = 1_600_000_000_000
HOUR = 3_600_000


def events_table(**changes: Any) -> pa.Table:
    """Two users with four events each; `changes` replace columns, None removes one."""
    columns: dict[str, Any] = {
        "user_id": [1, 1, 1, 1, 2, 2, 2, 2],
        "item_id": [1, 2, 3, 4, 1, 2, 3, 4],
        "timestamp": pa.array([START + i * HOUR for i in range(8)], pa.timestamp("ms")),
        "text": list("abcdefgh"),
        "lists": [["a"], [], None, ["b"], ["a"], ["a"], ["a"], ["a"]],
        "number": [0.5, 1.0, None, 2.0, 1.0, 1.0, 1.0, 1.0],
    }
    return pa.table({name: value for name, value in (columns | changes).items() if value is not None})


def items_table(**changes: Any) -> pa.Table:
    columns: dict[str, Any] = {"item_id": [1, 2, 3, 4], "name": list("abcd"), "genres": [["x"]] * 4, "size": [1.0] * 4}
    return pa.table({name: value for name, value in (columns | changes).items() if value is not None})


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Prepare the tables with a config and give back the message of the refusal."""

    def run(events: pa.Table | None = None, items: pa.Table | None = None, **config: Any) -> str:
        pq.write_table(events_table() if events is None else events, tmp_path / "events.parquet")
        content = {"events": str(tmp_path / "events.parquet")} | config
        if items is not None:
            pq.write_table(items, tmp_path / "items.parquet")
            content["items"] = str(tmp_path / "items.parquet")
        with pytest.raises(InputError) as caught:
            prepare(DataConfig.model_validate(content), str(tmp_path / "out"), lambda _: None)
        assert not (tmp_path / "out").exists()
        message = str(caught.value)
        assert "\n" not in message
        return message

    return run


Refused = Callable[..., str]


def says(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, message


def test_the_valid_log_is_prepared(tmp_path: Path) -> None:
    pq.write_table(events_table(), tmp_path / "events.parquet")
    pq.write_table(items_table(), tmp_path / "items.parquet")
    features = [{"name": "text"}, {"name": "lists", "kind": "categories"}, {"name": "number", "kind": "number"}]
    content = {"events": str(tmp_path / "events.parquet"), "items": str(tmp_path / "items.parquet")}
    config = DataConfig.model_validate(content | {"features": features, "title": "name", "duration": None})
    assert prepare(config, str(tmp_path / "out"), lambda _: None).counts["test_targets"] == 2


def test_no_events_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.events is missing"):
        prepare(DataConfig(), str(tmp_path))


def test_no_file_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        prepare(DataConfig(events=str(tmp_path / "nowhere")), str(tmp_path))


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "events.parquet").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(InputError, match=r"events\.parquet: not a Parquet file"):
        prepare(DataConfig(events=str(tmp_path / "events.parquet")), str(tmp_path / "out"), lambda _: None)


def test_input_where_output_is_written(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pq.write_table(events_table(), tmp_path / "train/events.parquet")
    with pytest.raises(InputError, match=r"events\.parquet: lies where prepared data are written"):
        prepare(DataConfig(events=str(tmp_path / "train")), str(tmp_path), lambda _: None)
    assert (tmp_path / "train/events.parquet").exists()


def test_a_missing_column(refused: Refused) -> None:
    says(refused(user="member"), "events.parquet", "'member'", "user_id, item_id, timestamp, text, lists, number")
    says(refused(duration="seconds"), "events.parquet", "'seconds'")
    says(refused(features=[{"name": "device"}]), "events.parquet", "'device'")
    rule = {"name": "action", "first_of": {"like": "is_like"}}
    says(refused(features=[rule]), "events.parquet", "'is_like'")
    says(refused(items=items_table(), title="headline"), "items.parquet", "'headline'", "item_id, name, genres, size")
    says(refused(items=items_table(item_id=None)), "items.parquet", "'item_id'")
    of_item = {"name": "colour", "of": "item"}
    says(refused(items=items_table(), features=[of_item]), "items.parquet", "'colour'")


@pytest.mark.parametrize(
    ("feature", "got", "allowed"),
    [
        ({"name": "lists"}, "list<", "kind category"),
        ({"name": "number"}, "double", "a string, an integer or a boolean"),
        ({"name": "text", "kind": "categories"}, "string", "a list of strings"),
        ({"name": "text", "kind": "number"}, "string", "a number"),
        ({"name": "text", "kind": "elapsed", "bins": ["1h"]}, "string", "a timestamp or a date"),
        ({"name": "number", "kind": "elapsed", "bins": ["1h"]}, "double", "a timestamp or a date"),
        ({"name": "rule", "first_of": {"a": "text"}}, "string", "a boolean or an integer 0 or 1"),
    ],
)
def test_a_wrong_type(refused: Refused, feature: dict[str, Any], got: str, allowed: str) -> None:
    column = "text" if "first_of" in feature else feature["name"]
    says(refused(features=[feature]), "events.parquet", f"column {column!r} is {got}", "takes", allowed)


def test_a_wrong_type_of_id_or_time(refused: Refused) -> None:
    says(refused(user="number"), "events.parquet", "'number' is double", "takes an integer or a string")
    says(refused(item="lists"), "events.parquet", "'lists' is list<", "takes an integer or a string")
    says(refused(time="text"), "'text' is string", "takes a timestamp or a date")
    says(refused(time="user_id"), "'user_id' is int64", "takes a timestamp", "data.time_unit")
    says(refused(time_unit="ms"), "'timestamp' is timestamp[ms]", "takes an integer", "data.time_unit is ms")
    says(refused(time_unit="position"), "'timestamp' is timestamp[ms]", "takes an integer", "position")
    says(refused(duration="text"), "'text' is string", "takes a number")


def test_a_wrong_type_in_the_item_table(refused: Refused) -> None:
    feature = {"name": "genres", "of": "item"}
    says(refused(items=items_table(), features=[feature]), "items.parquet", "'genres' is list<", "kind category")
    feature = {"name": "name", "of": "item", "kind": "elapsed", "bins": ["1d"]}
    says(refused(items=items_table(), features=[feature]), "items.parquet", "'name' is string", "timestamp or a date")
    says(refused(items=items_table(), title="size"), "items.parquet", "'size' is double", "takes a string")


def test_ids_of_events_and_items_differ_in_type(refused: Refused) -> None:
    strings = items_table(item_id=["1", "2", "3", "4"])
    says(refused(items=strings), "items.parquet", "'item_id' has strings", "events.parquet", "integers")
    log = events_table(item_id=list("abcdabcd"))
    says(refused(log, items_table()), "items.parquet", "'item_id' has integers", "events.parquet", "strings")


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_a_null_where_none_may_be(refused: Refused, column: str) -> None:
    table = events_table()
    values = table[column].to_pylist()
    values[5] = values[6] = None
    table = events_table(**{column: pa.array(values, table.schema.field(column).type)})
    says(refused(table), "events.parquet", f"column {column!r} has no value", "2 rows", "row 5")


def test_a_null_item_in_the_item_table(refused: Refused) -> None:
    says(refused(items=items_table(item_id=[1, 2, None, 4])), "items.parquet", "'item_id' has no value", "row 2")


def test_text_that_is_not_utf_8(refused: Refused) -> None:
    """Which a Parquet file can have, and pyarrow writes."""
    bad = pa.array([*[b"a"] * 5, b"caf\xe9", b"b", b"b"]).view(pa.string())
    for column, kind in (("user_id", None), ("item_id", None), ("text", "category"), ("lists", "categories")):
        values = pa.ListArray.from_arrays(pa.array(range(9), pa.int32()), bad) if column == "lists" else bad
        features = [{"name": column, "kind": kind}] if kind else []
        message = refused(events_table(**{column: values}), features=features)
        says(message, "events.parquet", f"column {column!r}", "UTF8", "row 5")
    name = pa.array([b"a", b"b", b"caf\xe9", b"d"]).view(pa.string())
    says(refused(items=items_table(name=name), title="name"), "items.parquet", "column 'name'", "UTF8", "row 2")


def test_an_item_that_is_there_twice(refused: Refused) -> None:
    says(refused(items=items_table(item_id=[7, 2, 3, 2])), "items.parquet", "'item_id'", "item 2 in 2 rows")
    says(refused(events_table(item_id=list("abcdabcd")), items_table(item_id=["x", "a", "b", "a"])), "item 'a'")


@pytest.mark.parametrize(
    ("bad", "said"),
    [(None, "has no value in row 3"), (-1.5, "not -1.5"), (float("nan"), "not nan"), (float("inf"), "not inf")],
)
def test_a_bad_duration(refused: Refused, bad: float | None, said: str) -> None:
    table = events_table(seconds=pa.array([1.0, 2.0, 0.0, bad, 1.0, 1.0, 1.0, 1.0]))
    says(refused(table, duration="seconds"), "events.parquet", "'seconds'", said, "row 3")


def test_durations_that_are_all_zero(refused: Refused) -> None:
    says(refused(events_table(seconds=[0.0] * 8), duration="seconds"), "events.parquet", "'seconds'", "0")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite(refused: Refused, bad: float) -> None:
    feature = {"name": "number", "kind": "number"}
    table = events_table(number=[1.0, None, bad, 2.0, bad, 1.0, 1.0, 1.0])
    says(refused(table, features=[feature]), "events.parquet", "'number'", bad, "2 rows", "row 2")
    feature = {"name": "size", "kind": "number", "of": "item"}
    items = items_table(size=[1.0, 2.0, 3.0, bad])
    says(refused(items=items, features=[feature]), "items.parquet", "'size'", bad, "row 3")


def test_a_flag_that_is_neither_0_nor_1(refused: Refused) -> None:
    feature = {"name": "action", "first_of": {"like": "liked"}}
    table = events_table(liked=[0, 1, None, 0, 2, 0, 0, 0])
    says(refused(table, features=[feature]), "events.parquet", "'liked'", "not 2", "row 4")


def test_a_time_in_the_future(refused: Refused) -> None:
    later = int(time.time() * 1000) + 49 * HOUR
    times = [START + i * HOUR for i in range(7)]
    table = events_table(timestamp=pa.array([*times, later], pa.timestamp("ms")))
    year = str(datetime.fromtimestamp(later / 1000, UTC).year)
    says(refused(table), "events.parquet", "'timestamp'", year, "in the future", "row 7")
    says(refused(events_table(timestamp=[*times, later]), time_unit="ms"), "'timestamp'", later, "row 7")
    table = events_table(timestamp=pa.array([*[date(2020, 1, 1)] * 7, date(9999, 12, 31)]))
    says(refused(table), "'timestamp'", "9999-12-31", "in the future", "row 7")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("real", ["s", "ms", "us", "ns"])
def test_integers_of_another_unit(refused: Refused, unit: str, real: str) -> None:
    if unit == real:
        return
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[real]
    values = [1_600_000_000 * scale + i for i in range(8)]
    message = refused(events_table(timestamp=pa.array(values)), time_unit=unit)
    says(message, "events.parquet", "'timestamp'", values[0], f"data.time_unit: {unit} right", "row 0")


def test_a_time_that_is_no_time(refused: Refused) -> None:
    times = [START + i * HOUR for i in range(7)]
    says(refused(events_table(timestamp=[*times, 0]), time_unit="ms"), "'timestamp'", " 0 ", "row 7")
    huge = pa.array([*times, 2**64 - 1], pa.uint64())
    says(refused(events_table(timestamp=huge), time_unit="ms"), "'timestamp'", 2**64 - 1, "row 7")
    extreme = pa.array([*times, 2**62], pa.timestamp("us"))
    says(refused(events_table(timestamp=extreme)), "'timestamp'", 2**62, "future", "row 7")


def test_an_item_that_the_table_lacks(refused: Refused) -> None:
    table = events_table(item_id=[1, 2, 3, 4, 99, 2, 99, 98])
    message = refused(table, items_table(), unknown_items="error")
    says(message, "events.parquet", "'item_id'", "items.parquet", "99", "3 events", "2 items")


def test_an_empty_log(refused: Refused) -> None:
    says(refused(events_table()[:0]), "events.parquet", "no events")


def test_all_users_are_dropped(refused: Refused) -> None:
    says(refused(min_user_events=5), "events.parquet", "no user has 5 events", "data.min_user_events")


@pytest.mark.parametrize(("rows", "name"), [([0, 4], "train"), ([0, 1, 4, 5], "validation"), ([0, 1, 2], "train")])
def test_an_empty_split_leave_one_out(refused: Refused, rows: list[int], name: str) -> None:
    says(refused(events_table().take(rows)), f"the {name} split is empty", "no user has")


@pytest.mark.parametrize(
    ("validation", "test", "name"), [("2h", "30d", "train"), ("2h", "1ms", "test"), ("1ms", "2h", "validation")]
)
def test_an_empty_split_point_in_time(refused: Refused, validation: str, test: str, name: str) -> None:
    """User 3's only event ends the log; user 2's last one is an hour and a half before."""
    rest = {"text": [*"abcdefghi"], "lists": [["a"]] * 9, "number": [1.0] * 9}
    hours = [0, 1, 2, 3, 4, 5, 6, 7.5, 9]
    times = pa.array([START + round(hour * HOUR) for hour in hours], pa.timestamp("ms"))
    table = events_table(user_id=[1, 1, 1, 1, 2, 2, 2, 2, 3], item_id=[1] * 9, timestamp=times, **rest)
    split = {"kind": "point_in_time", "validation": validation, "test": test}
    message = refused(table, split=split)
    says(message, f"the {name} split is empty", validation, test, "2020-09-13T12:26", "2020-09-13T21:26")


def test_fewer_bins_than_labels(refused: Refused) -> None:
    feature = {"name": "number", "kind": "number", "bins": 3, "bin_labels": ["low", "middle", "high"]}
    table = events_table(number=[1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0])
    says(refused(table, features=[feature]), "'number'", "1 bin", "bin_labels")


def test_types_that_differ_between_files(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    pq.write_table(events_table(), tmp_path / "events/a.parquet")
    pq.write_table(events_table(user_id=list("abcdefgh")), tmp_path / "events/b.parquet")
    with pytest.raises(InputError) as caught:
        prepare(DataConfig(events=str(tmp_path / "events")), str(tmp_path / "out"), lambda _: None)
    says(str(caught.value), "b.parquet", "'user_id'", "a.parquet")


@pytest.mark.parametrize("name", ["index", "id", "count", "title", "user", "targets"])
def test_feature_names_that_the_prepared_files_use(name: str) -> None:
    with pytest.raises(ValueError, match="is taken"):
        DataConfig.model_validate({"events": "x", "features": [{"name": name, "column": "c"}]})
