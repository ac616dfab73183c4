"""prepare against a reference in plain Python, on small random logs; and its promises one by one."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.manifest import Manifest, load_manifest
from ingest.data.schema import DataConfig
from ingest.prepare.pipeline import prepare
from tests.ingest.prepare.prepare_reference import (
    HOUR,
    SPLITS,
    START,
    Reference,
    Row,
    binned,
    config_for,
    elapsed,
    random_log,
    split_reference,
    write_log,
)


def read_rows(folder: Path, manifest: Manifest, split: str) -> list[Row]:
    return [row for shard in manifest.shards[split] for row in pq.read_table(folder / shard.path).to_pylist()]  # type: ignore[index]


def read_vocabulary(folder: Path, name: str) -> list[tuple[Any, int, int]]:
    table = pq.read_table(folder / f"vocab/{name}.parquet")
    assert table.schema.field("index").type == pa.int32()
    return [(row["value"], row["index"], row["count"]) for row in table.to_pylist()]


def prepare_random(folder: Path, seed: int, split: str, id_type: str, **more: Any) -> tuple[Manifest, Reference]:
    events, items = random_log(seed, id_type)
    write_log(folder, events, items, id_type)
    config = config_for(folder, split, **more)
    return prepare(config, str(folder / "out"), lambda _: None), Reference(config, events, items)


OPTIONS: list[Row] = [
    {},
    {"duplicates": "drop", "min_item_count": 2},
    {"min_user_events": 10, "min_item_count": 3, "shard_interactions": 40, "row_group_interactions": 25},
]
PARTITIONS: Row = {"partition_events": 30}
"""Makes several partitions of the small logs."""
MANY_PARTITIONS: Row = {"partition_events": 10}
"""Makes some ten, which are enough for tasks of their own."""


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("id_type", ["int", "string"])
@pytest.mark.parametrize(
    ("seed", "more"), [*((seed, {}) for seed in range(3)), *((s, PARTITIONS) for s in range(3, 6))]
)
def test_agrees_with_a_plain_reference(tmp_path: Path, seed: int, more: Row, id_type: str, split: str) -> None:
    """In one partition, and in several: users are then in the order of the partitions."""
    manifest, expected = prepare_random(tmp_path, seed, split, id_type, **OPTIONS[seed % 3], **more)
    out = tmp_path / "out"
    for name, rows in expected.splits.items():
        found = read_rows(out, manifest, name)
        if "partition_events" in more:
            found.sort(key=lambda row: row["user"])
        assert [row["user"] for row in found] == [user for user, _, _ in rows]
        assert [row["targets"] for row in found] == [targets for _, _, targets in rows]
        assert manifest.counts[f"{name}_rows"] == len(rows)
        if name != "rest":
            assert manifest.counts[f"{name}_targets"] == sum(targets for _, _, targets in rows)
            unknown = sum(event["item_id"] not in expected.item for _, events, n in rows for event in events[-n:])
            assert manifest.counts[f"unknown_targets_{name}"] == unknown
        for row, (_, events, _) in zip(found, rows, strict=True):
            encoded = [expected.event(event) for event in events]
            assert set(row) == {"user", "targets", *encoded[0]}
            for column in encoded[0]:
                values = [event[column] for event in encoded]
                assert row[column] == (pytest.approx(values, abs=1e-6) if column == "price" else values), column
    _check_items(out, manifest, expected)
    for name, count in expected.counts.items():
        assert manifest.counts[name] == count, name


def _check_items(out: Path, manifest: Manifest, expected: Reference) -> None:
    table = pq.read_table(out / "items.parquet")
    columns = expected.item_columns()
    assert table.column_names == ["index", *columns]
    assert table["index"].to_pylist() == list(range(manifest.catalogue))
    for name, values in columns.items():
        found = table[name].to_pylist()
        if name in ("age", "freshness"):
            assert table.schema.field(name).type == pa.int64()
        assert found == (pytest.approx(values, abs=1e-6) if name == "length" else values), name
    assert manifest.items == 2 + manifest.counts["items"]
    assert manifest.catalogue == manifest.items + manifest.counts["other_items"] == table.num_rows


@pytest.mark.parametrize("more", [{}, PARTITIONS], ids=["one partition", "several"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", range(3))
def test_vocabularies_and_statistics_agree(tmp_path: Path, seed: int, split: str, more: Row) -> None:
    manifest, expected = prepare_random(tmp_path, seed, split, "string", **OPTIONS[seed], **more)
    out = tmp_path / "out"
    for name, rows in {
        "device": expected.device_rows,
        "action": expected.action_rows,
        "turn": expected.turn_rows,
        "words": expected.word_rows,
        "genres": expected.genre_rows,
        "shelf": expected.shelf_rows,
    }.items():
        found = read_vocabulary(out, name)
        assert [row[:2] for row in found[:2]] == [("<padding>", 0), ("<unknown>", 1)]
        assert found[2:] == [(value, 2 + i, count) for i, (value, count) in enumerate(rows)]
        assert manifest.feature(name).size == len(found)
    assert read_vocabulary(out, "item")[2:] == [
        (v, 2 + i, n) for i, (v, n) in enumerate(expected.item_rows + expected.other_rows)
    ]
    assert (manifest.feature("price").mean, manifest.feature("price").deviation) == pytest.approx(expected.price)
    assert manifest.feature("price").is_number
    assert (manifest.feature("length").mean, manifest.feature("length").deviation) == pytest.approx(expected.length)
    assert manifest.feature("price_bin").edges == expected.price_edges
    assert manifest.feature("freshness").edges == expected.freshness_edges
    assert not (out / "vocab/price.parquet").exists()
    times = [row["timestamp"] for row in expected.training]
    assert (manifest.first_time, manifest.last_time) == (min(times), max(times))
    seconds = [row["seconds"] for row in expected.training]
    assert manifest.has_duration
    assert manifest.mean_duration == pytest.approx(sum(seconds) / len(seconds))


def test_bins_are_listed_with_their_training_counts(tmp_path: Path) -> None:
    manifest, expected = prepare_random(tmp_path, 0, "leave_one_out", "int")
    out = tmp_path / "out"
    visits = Counter(expected.event(row)["visit"] for row in expected.training)
    labels = ["<padding>", "<unknown>", "soon", "later", "late"]
    assert read_vocabulary(out, "visit") == [(text, i, visits[i]) for i, text in enumerate(labels)]
    assert [row[0] for row in read_vocabulary(out, "age")] == ["<padding>", "<unknown>", "< 5h", "5h - 1d", ">= 1d"]
    released = {value: row["released"] for (value, _), row in zip(expected.item_rows, expected.attributes, strict=True)}
    ages = [elapsed(row, released[row["item_id"]]) for row in expected.training]
    assert [row[2] for row in read_vocabulary(out, "age")] == [
        Counter(binned(age, [5 * HOUR, 24 * HOUR]) for age in ages)[i] for i in range(5)
    ]
    assert manifest.feature("age").size == 5
    assert manifest.feature("age").edges == [5 * HOUR, 24 * HOUR]
    assert [row[0] for row in read_vocabulary(out, "length_bin")][2:] == ["< 2", "2 - 4.5", ">= 4.5"]


def test_the_manifest_describes_every_shard(tmp_path: Path) -> None:
    manifest, _ = prepare_random(tmp_path, 2, "leave_one_out", "int", **OPTIONS[2])
    out = tmp_path / "out"
    assert manifest == load_manifest(str(out))
    assert len(manifest.shards["train"]) > 1
    for name, shards in manifest.shards.items():
        for number, shard in enumerate(shards):
            assert shard.path == f"{name}/part-00000-{number:03d}.parquet"
            content = (out / shard.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.checksum)
            file = pq.ParquetFile(out / shard.path, page_checksum_verification=True)
            groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
            found = [(group.num_rows, len(group["item"].combine_chunks().flatten())) for group in groups]
            assert found == shard.row_groups
            assert all(interactions <= 25 or rows == 1 for rows, interactions in found)
            assert shard.interactions <= 40 or len(found) == 1


def test_column_types_are_those_of_the_contract(tmp_path: Path) -> None:
    manifest, _ = prepare_random(tmp_path, 0, "leave_one_out", "int")
    schema = pq.read_schema(tmp_path / "out" / manifest.shards["train"][0].path)
    assert schema.field("user").type == pa.int64()
    assert schema.field("targets").type == pa.int32()
    kinds = {"item": pa.int32(), "time": pa.int64(), "duration": pa.float32(), "device": pa.int32()}
    kinds |= {"price": pa.float32(), "price_bin": pa.int32(), "visit": pa.int32()}
    for name, kind in kinds.items():
        assert schema.field(name).type.value_type == kind
    assert schema.field("words").type.value_type.value_type == pa.int32()
    items = pq.read_schema(tmp_path / "out/items.parquet")
    assert items.field("genres").type.value_type == pa.int32()
    assert items.field("length").type == pa.float32()
    assert items.field("shelf").type == pa.int32()


def simple_log(folder: Path, rows: list[tuple[Any, Any, int]], **more: Any) -> DataConfig:
    users, items, hours = zip(*rows, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    times = pa.array([START + hour * HOUR for hour in hours])
    table = pa.table({"user_id": list(users), "item_id": list(items), "timestamp": times})
    pq.write_table(table, folder / "events.parquet")
    content = {"events": str(folder / "events.parquet"), "time_unit": "ms"}
    return DataConfig.model_validate(content | more)


def items_of(folder: Path, manifest: Manifest, split: str) -> list[list[Any]]:
    """Each row's items by their own ids."""
    names = {index: value for value, index, _ in read_vocabulary(folder, "item")}
    return [[names[index] for index in row["item"]] for row in read_rows(folder, manifest, split)]


def test_equal_times_keep_the_order_of_the_log(tmp_path: Path) -> None:
    order = random.Random(5).sample(range(1000), 1000)
    rows = [("u", item, 0) for item in order] + [("u", 2000, 1), ("u", 2001, 1)]
    manifest = prepare(simple_log(tmp_path, rows), str(tmp_path / "out"), lambda _: None)
    assert items_of(tmp_path / "out", manifest, "train") == [order]


def test_one_user_is_enough(tmp_path: Path) -> None:
    config = simple_log(tmp_path, [("u", item, item) for item in range(4)])
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    assert {name: items_of(tmp_path / "out", manifest, name) for name in manifest.shards} == {
        "train": [[0, 1]],
        "validation": [[0, 1, 2]],
        "test": [[0, 1, 2, 3]],
        "rest": [],
    }
    assert manifest.counts["unknown_targets_validation"] == manifest.counts["unknown_targets_test"] == 1
    assert manifest.mean_duration == 1.0
    assert not manifest.has_duration


def test_short_histories_count_in_training_only(tmp_path: Path) -> None:
    rows = [("a", 1, 0), ("b", 1, 0), ("b", 2, 1), ("c", 1, 0), ("c", 2, 1), ("c", 3, 2), ("c", 4, 3)]
    manifest = prepare(simple_log(tmp_path, rows), str(tmp_path / "out"), lambda _: None)
    assert [row["user"] for row in read_rows(tmp_path / "out", manifest, "train")] == ["b", "c"]
    assert read_vocabulary(tmp_path / "out", "item") == [
        (None, 0, 0),
        (None, 1, 0),
        (1, 2, 3),
        (2, 3, 2),
        (3, 4, 0),
        (4, 5, 0),
    ]
    assert [(row["user"], row["targets"]) for row in read_rows(tmp_path / "out", manifest, "rest")] == [
        ("a", 0),
        ("b", 0),
    ]
    assert manifest.counts["users_without_target"] == 1
    assert manifest.counts["train_users_without_target"] == 1


def test_point_in_time_boundaries(tmp_path: Path) -> None:
    """The end minus the span is still outside the split that the span is for."""
    rows = [("a", 1, 0), ("a", 2, 6), ("a", 3, 8), ("a", 4, 9), ("a", 5, 10), ("b", 6, 10), ("c", 1, 9), ("c", 2, 10)]
    split = {"kind": "point_in_time", "validation": "2h", "test": "2h"}
    manifest = prepare(simple_log(tmp_path, [*rows, ("b", 6, 6)], split=split), str(tmp_path / "out"), lambda _: None)
    by_split = {
        name: {row["user"]: (len(row["item"]), row["targets"]) for row in read_rows(tmp_path / "out", manifest, name)}
        for name in manifest.shards
    }
    assert by_split == {
        "train": {"a": (2, 1)},
        "validation": {"a": (3, 1)},
        "test": {"a": (5, 2), "b": (2, 1), "c": (2, 1)},
        "rest": {},
    }


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_leaks_from_validation_and_test(tmp_path: Path, split: str) -> None:
    """Changing every held-out event leaves all that is learned as it was."""
    events, items = random_log(11, "int")
    write_log(tmp_path / "before", events, items, "int")
    config = config_for(tmp_path / "before", split)
    before = prepare(config, str(tmp_path / "before/out"), lambda _: None)
    kept = {id(row) for row in split_reference(config, events)[0]}
    change = {"item_id": 777, "device": "new", "liked": True, "words": ["new", "new2"], "price": 1e6, "seconds": 99.0}
    changed = [row if id(row) in kept else row | change | {"last_visit": START - 900 * HOUR} for row in events]
    assert len(kept) < len(events)
    write_log(tmp_path / "after", changed, items, "int")
    after = prepare(config_for(tmp_path / "after", split), str(tmp_path / "after/out"), lambda _: None)
    assert after.features == before.features
    for name in ("items", "first_time", "last_time", "mean_duration"):
        assert getattr(after, name) == getattr(before, name)
    for path in (tmp_path / "before/out/vocab").iterdir():
        if path.stem != "item":
            assert (tmp_path / "after/out/vocab" / path.name).read_bytes() == path.read_bytes(), path
    for file, without in (("items.parquet", ["exists"]), ("vocab/item.parquet", [])):
        known_before, known_after = (
            pq.read_table(tmp_path / name / "out" / file).drop_columns(without)[: before.items]
            for name in ("before", "after")
        )
        assert known_after.equals(known_before), file
    assert [s.checksum for s in after.shards["train"]] == [s.checksum for s in before.shards["train"]]
    assert after.counts["unknown_targets_test"] == after.counts["test_targets"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    events, items = random_log(3, "string")
    write_log(tmp_path, events, items, "string")
    config = config_for(tmp_path, "leave_one_out", shard_interactions=100)
    for name in ("one", "two"):
        prepare(config, str(tmp_path / name), lambda _: None)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    config = simple_log(tmp_path, [("u", item, item) for item in range(5)])
    out = tmp_path / "out"
    first = prepare(config, str(out), lambda _: None)
    (out / "items.parquet").unlink()
    lines: list[str] = []
    assert prepare(config, str(out), lines.append) == first
    assert not (out / "items.parquet").exists()
    assert "already" in lines[0]
    simple_log(tmp_path, [("u", item, item) for item in range(6)])
    again = prepare(config, str(out), lambda _: None)
    assert again.fingerprint != first.fingerprint
    assert again.counts["events"] == 6


def test_half_done_content_is_removed_but_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("train/part-00007.parquet", "vocab/old.parquet", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("older")
    prepare(simple_log(tmp_path, [("u", item, item) for item in range(5)]), str(out), lambda _: None)
    assert not (out / "train/part-00007.parquet").exists()
    assert not (out / "vocab/old.parquet").exists()
    assert (out / "notes.txt").read_text() == "older"


def test_a_damaged_manifest_is_prepared_anew(tmp_path: Path) -> None:
    config = simple_log(tmp_path, [("u", item, item) for item in range(5)])
    first = prepare(config, str(tmp_path / "out"), lambda _: None)
    (tmp_path / "out/manifest.json").write_text("{")
    assert prepare(config, str(tmp_path / "out"), lambda _: None) == first


def test_a_failure_leaves_older_data_complete(tmp_path: Path) -> None:
    config = simple_log(tmp_path, [("u", item, item) for item in range(5)])
    first = prepare(config, str(tmp_path / "out"), lambda _: None)
    simple_log(tmp_path, [("u", 1, 1)])
    with pytest.raises(ValueError, match="empty"):
        prepare(config, str(tmp_path / "out"), lambda _: None)
    assert load_manifest(str(tmp_path / "out")) == first


def test_progress_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    prepare(simple_log(tmp_path, [("u", item, item) for item in range(5)]), str(tmp_path / "out"), lines.append)
    for stage in ("reading", "sorting", "splitting", "vocabularies", "train", "validation", "test"):
        assert any(stage in line for line in lines), stage


def test_object_stores_take_the_same_path(tmp_path: Path) -> None:
    """Through fsspec's memory file system, as an s3:// log would go."""
    config = simple_log(tmp_path, [("u", item, item) for item in range(5)])
    local = prepare(config, str(tmp_path / "out"), lambda _: None)
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/log/events.parquet", (tmp_path / "events.parquet").read_bytes())
    content = config.model_dump() | {"events": "memory://bucket/log"}
    remote = prepare(DataConfig.model_validate(content), "memory://bucket/out", lambda _: None)
    assert remote.shards == local.shards
    assert prepare(DataConfig.model_validate(content), "memory://bucket/out", lambda _: None) == remote
    memory.rm("/bucket", recursive=True)
