"""Whatever a folder of a log can hold is read, or named as left out."""

from __future__ import annotations

import gzip
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare
from ingest.raw.columns import RawFile
from ingest.raw.files import find_files, folder_values
from ingest.storage import open_file, remove, walk
from tests.s3 import ObjectStore

START = 1_600_000_000
USERS, ITEMS = 6, 5


def log_table(users: list[int] | range = range(USERS), **changes: Any) -> pa.Table:
    """Five events of each user; `changes` replace columns, None removes one."""
    rows = [(user, (user + place) % ITEMS, START + 100 * user + place) for user in users for place in range(5)]
    user_id, item_id, timestamp = ([row[column] for row in rows] for column in range(3))
    columns = {"user_id": user_id, "item_id": item_id, "timestamp": timestamp} | changes
    return pa.table({name: values for name, values in columns.items() if values is not None})


def write(path: Path, table: pa.Table | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(log_table() if table is None else table, path)
    return path


def listed(folder: Path) -> tuple[list[str], str]:
    """What is read of the folder, and what is said of the rest."""
    said: list[str] = []
    found = find_files(str(folder), said.append)
    return [os.path.relpath(path, folder) for path in found], " ".join(said)


def prepared(folder: Path, **config: Any) -> dict[str, pl.DataFrame]:
    """The vocabularies of the log at `folder`/log."""
    content = {"events": str(folder / "log"), "time_unit": "s"} | config
    prepare(DataConfig.model_validate(content), str(folder / "out"), lambda _: None)
    return {path.stem: pl.read_parquet(path) for path in (folder / "out" / "vocab").iterdir()}


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepared(folder, **config)
    return str(caught.value)


def counts(vocabulary: pl.DataFrame) -> dict[Any, int]:
    return {value: count for value, index, count in vocabulary.rows() if index >= 2}


@pytest.mark.parametrize(
    "name",
    ["a.parquet", "a.parq", "A.PARQUET", "a.gz.parquet", "a.snappy.parquet", "a.parquet.gz", "a.parquet.gzip", "a",
     "part-00000", "a.dat", "a b.parquet", "a%20b.parquet", "été #1 [x]?*.parquet", "a::b.parquet"],
)  # fmt: skip
def test_a_parquet_file_is_read_whatever_its_name(name: str, tmp_path: Path) -> None:
    write(tmp_path / "log" / name)
    assert listed(tmp_path / "log") == ([name], "")
    assert sum(counts(prepared(tmp_path)["item"]).values()) == 3 * USERS


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    for name in ("_SUCCESS", ".a.parquet.crc", "_metadata", "_common_metadata"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "c.parquet.tmp").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    (tmp_path / "notes.txt").write_text("PAR1")
    (tmp_path / "empty").touch()
    write(tmp_path / "_temporary" / "0" / "d.parquet")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "\udcff.parquet").touch()
    files, said = listed(tmp_path)
    assert files == ["a.parquet"]
    for what in ("b.parquet.gz (no", "c.parquet.tmp (no", "_temporary (hidden)", "2 more"):
        assert what in said
    assert walk(str(tmp_path)).left_out["pipe"] == "no file that can be read"
    assert walk(str(tmp_path)).left_out["'\\udcff.parquet'"] == "a name that is not UTF-8"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"no Parquet files there, but .*b\.parquet\.gz \(no Parquet file\)"):
        listed(tmp_path)


def read_all(path: Path) -> None:
    with RawFile(str(path), ["text", "lists"]) as file:
        for columns in file.batches(0, len(file.rows), 0, 100):
            columns["text"].ids()
            columns["lists"].categories()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "zstd", "brotli"])
def test_damage_is_told_with_the_name_of_the_file(compression: str, tmp_path: Path) -> None:
    """Wherever it is: the readers of headers, pages and compressed data have errors of their own."""
    table = pa.table({"text": [f"text {i}" for i in range(500)], "lists": [["a", str(i % 7)] for i in range(500)]})
    path, chance = tmp_path / "x.parquet", random.Random(0)
    pq.write_table(table, path, compression=compression, use_dictionary=["lists"])
    whole = path.read_bytes()
    refused = []
    for number in range(60):
        damaged = bytearray(whole)
        for _ in range(1 + 20 * (number % 2)):
            damaged[chance.randrange(4, len(whole) - 4)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(message.startswith(f"{path}: ") for message in refused)


def test_a_file_that_is_gone_when_it_is_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/x\.parquet: is not there any more"):
        read_all(tmp_path / "x.parquet")


def test_links_are_followed_and_each_file_is_read_once(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    for path in (log / "day-1/a.parquet", elsewhere / "deep/b.parquet", tmp_path / "c.parquet"):
        write(path)
    write(tmp_path / "versions" / "7" / "d.parquet")
    links = {
        "day-2": elsewhere, "c.parquet": tmp_path / "c.parquet", "again": log / "day-1", "a-again.parquet":
        log / "day-1/a.parquet", "back": log, "above": tmp_path, "nothing": tmp_path / "gone", "round": log / "round",
        "current": tmp_path / "versions/7",
    }  # fmt: skip
    for name, target in links.items():
        (log / name).symlink_to(target)
    (elsewhere / "to-log").symlink_to(log)
    files, said = listed(log)
    assert files == ["c.parquet", "current/d.parquet", "day-1/a.parquet", "day-2/deep/b.parquet"]
    assert "again (a link to what is read already)" in said
    assert "above (a link to a folder above)" in said
    (tmp_path / "linked").symlink_to(log)
    assert listed(tmp_path / "linked")[0] == files


def test_what_is_read_through_a_link_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    target = write(tmp_path / "elsewhere" / "a.parquet", log_table(range(3)))
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "linked").symlink_to(target.parent)
    before = find_files(str(tmp_path / "log"), print)
    write(target, log_table(range(4)))
    assert list(before) == list(find_files(str(tmp_path / "log"), print))
    assert before != find_files(str(tmp_path / "log"), print)


@pytest.mark.parametrize("there", ["relative", "~", "absolute"])
def test_a_path_that_is_not_there_is_told_in_full(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    name = {"relative": "some/log", "~": "~/some/log", "absolute": str(tmp_path / "some/log")}[there]
    tried = tmp_path / "some/log"
    with pytest.raises(InputError, match=rf"^{tried}: no such file or folder .* current folder, {tmp_path}"):
        find_files(name, print)
    with pytest.raises(InputError, match=r"^/not/there/at all: no such file or folder$"):
        find_files("/not/there/at all", print)


def test_folders_give_columns(tmp_path: Path) -> None:
    for user in range(USERS):
        for shop in ("Köln%2FMitte", "__HIVE_DEFAULT_PARTITION__"):
            table = log_table([user]).drop(["user_id"])
            write(tmp_path / "log" / f"user_id={user}" / f"shop={shop}" / "a.parquet", table)
    for item in range(ITEMS):
        table = pa.table({"price": [1.0]})
        write(tmp_path / "items" / f"item_id={item}" / f"made=202{item}-01-31" / "a.parquet", table)
    features = [
        {"name": "shop"},
        {"name": "made", "kind": "elapsed", "of": "item", "bins": ["10d", "300d"]},
        {"name": "price", "kind": "number", "of": "item"},
    ]
    found = prepared(tmp_path, items=str(tmp_path / "items"), features=features)
    assert counts(found["shop"]) == {"Köln/Mitte": 4 * USERS}
    items = zip(found["item"]["value"][2:], pl.read_parquet(tmp_path / "out/items.parquet")["made"][2:], strict=True)
    for item, made in items:
        assert made == datetime(2020 + item, 1, 31, tzinfo=UTC).timestamp() * 1000


def test_values_of_folders_are_one_type(tmp_path: Path) -> None:
    """Where one is no integer as it is written, all are text, and none is another than it was."""
    for place, value in enumerate(["1", "007", "-3", "x", "12345678901234567890", ""]):
        write(tmp_path / "log" / f"v={value}" / "a.parquet", log_table([place]))
    found = counts(prepared(tmp_path, features=[{"name": "v"}])["v"])
    assert found == dict.fromkeys(["1", "007", "-3", "x", "12345678901234567890"], 3)


def test_items_of_folders(tmp_path: Path) -> None:
    """Ids that are text in the log; a title and a category that are a number in some folders only."""
    write(
        tmp_path / "log" / "a.parquet",
        log_table(item_id=[str((place + place // 5) % ITEMS) for place in range(5 * USERS)]),
    )
    for item in range(ITEMS):
        named = f"title={item if item % 2 else 'x'}/shelf={item if item % 2 else 'y'}"
        write(tmp_path / "items" / f"item_id={item}" / named / "a.parquet", pa.table({"price": [1.0]}))
    features = [{"name": "shelf", "of": "item"}]
    found = prepared(tmp_path, items=str(tmp_path / "items"), title="title", features=features)
    assert counts(found["shelf"]).keys() == {"1", "3", "y"}
    title = pl.read_parquet(tmp_path / "out" / "items.parquet")["title"]
    expected = {str(item): str(item) if item % 2 else "x" for item in range(ITEMS)}
    assert dict(zip(found["item"]["value"][2:], title[2:], strict=True)) == expected


def test_the_time_of_folders(tmp_path: Path) -> None:
    for day in range(1, 6):
        table = pa.table({"user_id": list(range(USERS)), "item_id": [day] * USERS})
        write(tmp_path / "log" / f"day=2024-02-0{day}" / "a.parquet", table)
    config = DataConfig(events=str(tmp_path / "log"), time="day")
    manifest = prepare(config, str(tmp_path / "out"), lambda _: None)
    # of training: the last two days are validation and test
    assert manifest.first_time == datetime(2024, 2, 1, tzinfo=UTC).timestamp() * 1000
    assert manifest.last_time == datetime(2024, 2, 3, tzinfo=UTC).timestamp() * 1000


@pytest.mark.parametrize(
    ("feature", "value"),
    [({"kind": "number"}, "many"), ({"kind": "elapsed", "bins": ["7d"]}, "yesterday"), ({"first_of": {"a": "v"}}, "m")],
)
def test_a_folders_value_of_another_kind_is_refused(feature: dict[str, Any], value: str, tmp_path: Path) -> None:
    write(tmp_path / "log" / f"v={value}" / "a.parquet")
    feature = {"name": "f"} | feature | ({} if "first_of" in feature else {"column": "v"})
    message = refusal(tmp_path, features=[feature], time_unit="s")
    assert f"v={value}/a.parquet: column 'v', which the name of the folder gives, is {value!r}" in message


def test_a_files_own_column_comes_before_the_folders(tmp_path: Path) -> None:
    write(tmp_path / "log" / "item_id=7" / "a.parquet")
    assert set(counts(prepared(tmp_path)["item"])) <= set(range(ITEMS))
    assert folder_values("s3://bucket/a=b/%61=%2F/=x/c=/f=1.parquet") == {"a": "b", "c": None} | {"a": "/"}


EMPTY = {
    "columns of type null": pa.table({name: pa.nulls(0) for name in ("user_id", "item_id", "timestamp", "what")}),
    "no columns": pa.table({}),
    "no rows": log_table(what=["x"] * 5 * USERS).slice(0, 0),
    "narrow types": pa.table({"user_id": pa.array([], pa.int8()), "item_id": pa.array([], pa.uint16()),
                              "timestamp": pa.array([], pa.int32()), "what": pa.array([], pa.string())}),
}  # fmt: skip


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_without_rows_changes_nothing(kind: str, first: bool, tmp_path: Path) -> None:
    full = log_table(what=["x", "y", "z", "x", "y"] * USERS)
    for folder, empty in (("with", True), ("without", False)):
        write(tmp_path / folder / "log" / "b.parquet", full)
        if empty:
            write(tmp_path / folder / "log" / ("a.parquet" if first else "c.parquet"), EMPTY[kind])
    with_it, without = (prepared(tmp_path / folder, features=[{"name": "what"}]) for folder in ("with", "without"))
    for name in ("item", "what"):
        assert with_it[name].rows() == without[name].rows()


def test_shards_whose_values_are_all_missing(tmp_path: Path) -> None:
    """A column of type null in a shard with rows: no value where one may be missing, refused where not."""
    flags = log_table(range(3), what=["x"] * 15, size=[1.0] * 15, flag=[True] * 15, tags=[["a"]] * 15)
    nulls = {name: pa.nulls(15) for name in ("what", "size", "flag", "tags")}
    write(tmp_path / "log" / "a.parquet", log_table(range(3, 6), **nulls))
    write(tmp_path / "log" / "b.parquet", flags)
    features = [{"name": "what"}, {"name": "size", "kind": "number"}, {"name": "tags", "kind": "categories"},
                {"name": "flagged", "first_of": {"yes": "flag"}}]  # fmt: skip
    found = prepared(tmp_path, features=features)
    assert counts(found["what"]) == {"x": 9}
    assert counts(found["tags"]) == {"a": 9}
    assert counts(found["flagged"]) == {"yes": 9, "none": 9}
    write(tmp_path / "log" / "a.parquet", log_table(range(3, 6), user_id=pa.nulls(15)))
    assert "a.parquet: column 'user_id' has no value in 15 rows" in refusal(tmp_path)


BIG = 2**64 - 5
INTEGERS = [
    (pa.int8(), pa.int64(), [1, 2, 3], [4, 5, 2**40], pl.Int64),
    (pa.int16(), pa.uint32(), [-1, 2, 3], [4, 5, 2**32 - 1], pl.Int64),
    (pa.uint8(), pa.int32(), [1, 2, 255], [-4, 5, 6], pl.Int64),
    (pa.uint64(), pa.int64(), [1, 2, 3], [-4, 5, 6], pl.Int64),
    (pa.uint64(), pa.int64(), [1, 2, BIG], [4, 5, 6], pl.UInt64),
    (pa.uint64(), pa.uint8(), [1, 2, BIG], [4, 5, 6], pl.UInt64),
    (pa.uint64(), pa.uint64(), [1, 2, 3], [4, 5, BIG], pl.UInt64),
]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("column", ["item_id", "what", "tags"])
@pytest.mark.parametrize(("left", "right", "low", "high", "kind"), INTEGERS)
def test_integers_of_different_types(
    left: pa.DataType, right: pa.DataType, low: list[int], high: list[int], kind: pl.DataType, column: str,
    statistics: bool, tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "log").mkdir()
    for number, (dtype, values) in enumerate([(left, low), (right, high)]):
        cells = pa.array([values[place % 3] for place in range(15)], dtype)
        if column == "tags":
            cells = pa.array([[cell] for cell in cells.to_pylist()], pa.list_(dtype))
        table = log_table(range(3 * number, 3 * number + 3), **{column: cells})
        pq.write_table(table, tmp_path / "log" / f"{number}.parquet", write_statistics=statistics)
    features = [{"name": "what"}, {"name": "tags", "kind": "categories"}]
    config = {"features": [feature for feature in features if feature["name"] == column]}
    known = statistics and column != "tags"
    if kind == pl.UInt64 and left != right and not known:
        assert f"{BIG} does not fit Int64" in refusal(tmp_path, **config)
        return
    found = prepared(tmp_path, **config)["item" if column == "item_id" else column]
    assert {int(value) for value in counts(found)} == {*low, *high}
    if column == "item_id":
        assert found["value"].dtype == kind


def test_integers_that_no_type_holds_are_refused(tmp_path: Path) -> None:
    for name, kind, value in (("a", pa.int8(), -1), ("b", pa.uint64(), BIG)):
        write(tmp_path / "log" / f"{name}.parquet", log_table(range(3), item_id=pa.array([value] * 15, kind)))
    message = refusal(tmp_path)
    assert "a.parquet: column 'item_id' has -1, but" in message
    assert f"b.parquet has {BIG}: no integer type of 64 bits holds both" in message


def test_text_and_integers_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "log" / "a.parquet", log_table(range(3)))
    write(tmp_path / "log" / "b.parquet", log_table(range(3), item_id=["x"] * 15))
    assert "b.parquet: column 'item_id' is String, but Int64 in" in refusal(tmp_path)


def test_an_object_store_holds_the_same(s3: ObjectStore, tmp_path: Path) -> None:
    s3.make_bucket("files")
    source = write(tmp_path / "a.parquet", log_table().drop(["item_id"]))
    root = "s3://files/a log [x]?*::y/log"
    names = ["item_id=3/B.PARQ", "item_id=4/x=%2F/part-0", "_SUCCESS", "_temporary/0/c.parquet", "notes.txt", "empty"]
    for name in names:
        with open_file(f"{root}/{name}", "wb") as file:
            file.write(b"" if name in ("_SUCCESS", "empty") else b"text" if "notes" in name else source.read_bytes())
    said: list[str] = []
    found = find_files(root, said.append)
    assert list(found) == [f"{root}/item_id=3/B.PARQ", f"{root}/item_id=4/x=%2F/part-0"]
    assert "_temporary (hidden)" in said[0]
    assert "notes.txt (no Parquet file)" in said[0]
    prepare(DataConfig(events=root, time_unit="s"), str(tmp_path / "out"), lambda _: None)
    assert set(counts(pl.read_parquet(tmp_path / "out/vocab/item.parquet"))) == {3, 4}
    with open_file("s3://files/a log x1z::y/log/kept", "wb") as file:
        file.write(b"another folder, which the name above would mean as a pattern")
    remove(root)
    with pytest.raises(InputError, match=r"no such file or folder|no Parquet files there$"):
        find_files(root, said.append)
    assert list(find_files("s3://files/a log x1z::y/log/kept", said.append))


@pytest.mark.parametrize("name", ["a::b", "a b", "50%", "%41", "#x?y=1", "[ab]*", "été", "s3:x", "file:y", "~z", "a&b"])
def test_odd_characters_in_every_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "made" / "a.parquet")
    (tmp_path / name).mkdir()
    shutil.move(tmp_path / "made", tmp_path / name / name)
    monkeypatch.chdir(tmp_path)
    relative = f"./{name}"
    config = DataConfig(events=f"{relative}/{name}", time_unit="s", work=f"{relative}/work")
    assert config.work == f"{tmp_path}/{name}/work"
    manifest = prepare(config, f"{relative}/out", lambda _: None)
    assert manifest.counts["users"] == USERS
    found = sorted(path.name for path in (tmp_path / name / "out").iterdir())
    assert found[:3] == ["activity", "items.parquet", "manifest.json"]
