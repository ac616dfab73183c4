"""Logs at the edges: names that are also ours, huge numbers, other types of the same values, the log's last event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ingest.data.builder import BatchBuilder
from ingest.data.items import load_items
from ingest.data.manifest import Manifest
from ingest.data.requests import read_requests
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare

HOUR = 3_600_000
START = 1_600_000_000_000


def prepared(folder: Path, columns: dict[str, Any], items: dict[str, Any] | None = None, **data: Any) -> Manifest:
    """A log of four users with six events each, of five items, with the `columns`, prepared in folder/out."""
    pq.write_table(
        pa.table(
            {
                "user_id": [user for user in range(4) for _ in range(6)],
                "item_id": [(user + event * 3) % 5 for user in range(4) for event in range(6)],
                "timestamp": [START + (6 * user + event) * HOUR for user in range(4) for event in range(6)],
                **columns,
            }
        ),
        folder / "events.parquet",
    )
    if items is not None:
        pq.write_table(pa.table({"item_id": range(5), **items}), folder / "items.parquet")
        data["items"] = str(folder / "items.parquet")
    return prepare(config_of(folder, **data), str(folder / "out"), lambda _: None)


def config_of(folder: Path, **data: Any) -> DataConfig:
    return DataConfig.model_validate({"events": str(folder / "events.parquet"), "time_unit": "ms", **data})


@pytest.mark.parametrize("name", ["total", "first", "appeared", "listed", "value", "quality"])
def test_an_attribute_may_be_called_like_what_is_counted_of_items(name: str, tmp_path: Path) -> None:
    """Another value a bin: what the model sees is the attribute, and nothing that prepare has counted."""
    bins: list[float] = [150, 250, 350, 450]
    feature = {"name": name, "of": "item", "kind": "number", "bins": bins}
    prepared(tmp_path, {}, {name: [100.0, 200.0, 300.0, 400.0, 500.0]}, features=[feature])
    rows = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    ids = pq.read_table(tmp_path / "out" / "vocab" / "item.parquet")["value"].to_pylist()
    assert {ids[row["index"]]: row[name] for row in rows[2:]} == {item: 2 + item for item in range(5)}


@pytest.mark.parametrize("name", ["place", "where"])
def test_events_that_differ_in_a_feature_are_no_duplicates(name: str, tmp_path: Path) -> None:
    """Each event is there twice, the second time with another value."""
    once = pa.table(
        {
            "user_id": [user for user in range(4) for _ in range(6)],
            "item_id": [event % 5 for _ in range(4) for event in range(6)],
            "timestamp": [START + event * HOUR for _ in range(4) for event in range(6)],
        }
    )
    both = [once.append_column(name, pa.array([value] * once.num_rows)) for value in ("a", "b")]
    pq.write_table(pa.concat_tables([*both, both[0].slice(3, 1)]), tmp_path / "events.parquet")
    config = config_of(tmp_path, duplicates="drop", features=[{"name": name}])
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    assert (manifest.counts["duplicates"], manifest.counts["events"]) == (1, 2 * once.num_rows)


@pytest.mark.parametrize("split", [{}, {"kind": "point_in_time", "validation": "4h", "test": "4h"}])
def test_what_is_asked_for_without_a_moment_is_asked_for_at_the_logs_last_event(
    split: dict[str, str], tmp_path: Path
) -> None:
    manifest = prepared(tmp_path, {}, split=split)
    assert manifest.last_time < START + 23 * HOUR
    builder = BatchBuilder(manifest, load_items(str(tmp_path / "out"), manifest), 9, windows=False, after_last=True)
    assert builder.moment == START + 23 * HOUR


DEVICES = ["tv", "1", "300"] * 8


def asked(folder: Path, **columns: Any) -> dict[str, list[int]]:
    """The indices of the features in requests with the `columns`, in files of two."""
    (folder / "requests").mkdir(exist_ok=True)
    table = pa.table(columns)
    for begin in range(0, table.num_rows, 2):
        pq.write_table(table.slice(begin, 2), folder / "requests" / f"{begin}.parquet")
    config = config_of(folder, features=FEATURES)
    manifest = prepared(folder, {"device": DEVICES, "since": SINCE}, features=FEATURES)
    found = read_requests(str(folder / "requests"), config, manifest, str(folder / "out"))
    return {name: indices.tolist() for name, indices in found.features.items()}


FEATURES: list[dict[str, Any]] = [
    {"name": "device", "at_request": True},
    {"name": "since", "kind": "elapsed", "bins": ["1d"], "at_request": True, "unit": "ms"},
]
SINCE = [START - 100 * HOUR] * 24


def test_a_date_at_the_request_counts_from_it(tmp_path: Path) -> None:
    times = [START, START + 50 * HOUR]
    since = [time - ago for time, ago in zip(times, (1000, 48 * HOUR), strict=True)]
    found = asked(tmp_path, user_id=[0, 1], timestamp=times, device=["tv", "tv"], since=since)
    assert found["since"] == [2, 3]


@pytest.mark.parametrize("kind", [pa.int64(), pa.int16(), pa.uint16(), pa.string(), pa.null()])
def test_requests_may_have_the_logs_values_in_another_type(kind: pa.DataType, tmp_path: Path) -> None:
    """Text in the log; what is the same as text is the same value, and what is missing is unknown."""
    device = pa.nulls(2) if pa.types.is_null(kind) else pa.array([300, 7]).cast(kind)
    times = [START] * 2
    found = asked(tmp_path, user_id=[0, 1], timestamp=times, device=device, since=times)
    vocabulary = pq.read_table(tmp_path / "out" / "vocab" / "device.parquet")["value"].to_pylist()
    assert found["device"] == [1 if pa.types.is_null(kind) else vocabulary.index("300"), 1]


def test_users_of_requests_may_have_integers_of_several_widths_but_no_text_among_them(tmp_path: Path) -> None:
    prepared(tmp_path, {})
    folder, config = tmp_path / "requests", config_of(tmp_path)
    folder.mkdir()
    users = {"a": pa.array([3], pa.int32()), "b": pa.array([2**63 + 1], pa.uint64()), "c": pa.array([1], pa.int64())}
    for name, ids in users.items():
        pq.write_table(pa.table({"user_id": ids, "timestamp": [START]}), folder / f"{name}.parquet")
    manifest = prepared(tmp_path, {})
    requests = read_requests(str(folder), config, manifest, str(tmp_path / "out"))
    assert requests.places([3, 2**63 + 1, 1, 0]).tolist() == [0, 1, 2, -1]
    pq.write_table(pa.table({"user_id": ["3"], "timestamp": [START]}), folder / "d.parquet")
    with pytest.raises(InputError, match="column 'user_id' has integers in some files and text in others"):
        read_requests(str(folder), config, manifest, str(tmp_path / "out"))


def test_what_is_made_of_the_item_is_not_known_at_the_request(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="kind repeat is made of the item, which is chosen later"):
        config_of(tmp_path, features=[{"name": "again", "kind": "repeat", "at_request": True}])


@pytest.mark.parametrize(
    ("kind", "bins"), [("number", [10, float("inf")]), ("number", [float("nan")]), ("number", ["inf"]),
                       ("elapsed", [float("inf")])]
)  # fmt: skip
def test_bins_without_an_end_are_refused(kind: str, bins: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"finite number|takes a number with a unit"):
        config_of(tmp_path, features=[{"name": "x", "kind": kind, "bins": bins}])


def test_numbers_are_those_of_fp32_and_integers_of_any_size_are_rounded(tmp_path: Path) -> None:
    feature = [{"name": "x", "kind": "number"}]
    manifest = prepared(tmp_path, {"x": [2**53 + 1 + event for event in range(24)]}, features=feature)
    assert manifest.features[0].mean == pytest.approx(2**53, rel=1e-9)
    for bad in (1e300, 1.7e308):
        with pytest.raises(
            InputError, match=r"events\.parquet: column 'x' takes numbers up to 3\.4e\+38, not 1.*row 23"
        ):
            prepared(tmp_path, {"x": [1.0] * 23 + [bad]}, features=feature)


def test_what_grows_takes_new_flags_of_its_bins_and_no_other_bins(tmp_path: Path) -> None:
    values = {"x": [float(event % 7) for event in range(24)]}
    feature: dict[str, Any] = {"name": "x", "kind": "number", "bins": [2, 4]}
    prepared(tmp_path, values, features=[feature])
    grown = prepared(tmp_path, values | {"y": [0] * 24}, features=[feature | {"intent": True}], grow=True)
    assert grown.intents[0].name == "x"
    with pytest.raises(InputError, match="feature 'x': a data set that grows keeps its bins"):
        prepared(tmp_path, values, features=[feature | {"bins": [2, 5]}], grow=True)


@pytest.mark.parametrize("column", ["item_id", "x"])
def test_what_grows_keeps_values_that_the_new_log_has_no_type_for(tmp_path: Path, column: str) -> None:
    """Integers of another width are held together; text beside integers is not."""
    data: dict[str, Any] = {"features": [] if column == "item_id" else [{"name": "x"}]}
    vocabulary = tmp_path / "out" / "vocab" / ("item.parquet" if column == "item_id" else "x.parquet")
    prepared(tmp_path, {column: [1000 + place % 3 for place in range(24)]}, **data)
    before = pq.read_table(vocabulary)["value"].to_pylist()
    narrow = pa.array([place % 3 for place in range(24)], pa.int8())
    manifest = prepared(tmp_path, {column: narrow}, **data, grow=True)
    after = pq.read_table(vocabulary)["value"].to_pylist()
    assert after[: len(before)] == before
    assert sorted(map(int, after[len(before) :])) == [0, 1, 2]
    assert manifest.counts["unknown_targets_test"] == 0
    prepared(tmp_path, {column: ["a", "b", "c"] * 8}, **data)
    with pytest.raises(InputError, match=f"column '{column}' is Int8 now, .* has 'a'"):
        prepared(tmp_path, {column: narrow}, **data, grow=True)
