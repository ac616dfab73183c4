"""The MovieLens import: every layout that GroupLens ships, the log's own order, and what is refused."""

from __future__ import annotations

import datetime
import os
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.errors import InputError
from ingest.sources.movielens import MovieLens

DATA = Path(os.environ.get("INTENTREC_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
RATINGS = [(7, 2, 3, 978300760), (1, 1, 4, 978300700), (7, 1, 5, 978300760)]
NO_FLAGS = "|".join("0" * 19)
UNKNOWN = "|".join("1" + "0" * 18)
COMEDY_DRAMA = "|".join("1" if index in (5, 8) else "0" for index in range(19))

LAYOUTS: dict[str, dict[str, bytes]] = {
    "ml-100k": {
        "u.data": "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in RATINGS).encode(),
        "u.item": (
            f'1|Café "Noir": A (1995)|02-Feb-1995||http://x/1|{COMEDY_DRAMA}\n'
            f"2|Second (1996)|||http://x/2|{NO_FLAGS}\n3|unknown||||{UNKNOWN}\n"
        ).encode("latin-1"),
    },
    "ml-1m": {
        "ratings.dat": "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in RATINGS).encode(),
        "movies.dat": (
            '1::Café "Noir": A (1995)::Comedy|Drama\n2::Second (1996)::(no genres listed)\n3::unknown::\n'
        ).encode("latin-1"),
        "users.dat": b"1::F::1::10::48067\n",
    },
    "ml-latest-small": {
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n"
        + "".join(f"{u},{i},{r}.0,{t}\r\n" for u, i, r, t in RATINGS).encode(),
        "movies.csv": (
            "movieId,title,genres\r\n"
            '1,"Café ""Noir"": A (1995)",Comedy|Drama\r\n2,Second (1996),(no genres listed)\r\n3,unknown,\r\n'
        ).encode(),
        "links.csv": b"movieId,imdbId,tmdbId\r\n1,2,3\r\n",
    },
}


def write_layout(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, name: str, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/", "")
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
    return path


@pytest.mark.parametrize("form", ["folder", "parent folder", "zip"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_each_layout(tmp_path: Path, name: str, form: str) -> None:
    source = tmp_path / f"{name}.zip" if form == "zip" else tmp_path / "in" / name
    if form == "zip":
        pack(source, name, LAYOUTS[name])
    else:
        write_layout(source, LAYOUTS[name])
    made = MovieLens(source=str(source.parent if form == "parent folder" else source)).make(str(tmp_path / "out"))
    assert (made["users"], made["items"], made["events"]) == (2, 3, 3)

    events = pl.read_parquet(made["events_path"])
    assert events.columns == ["user_id", "item_id", "timestamp", "rating", "liked"]
    assert events.select("user_id", "item_id", "rating").rows() == [row[:3] for row in RATINGS]
    assert events["timestamp"].dt.epoch("s").to_list() == [row[3] for row in RATINGS]
    assert events["liked"].to_list() == ["not liked", "liked", "liked"]
    assert pq.read_schema(made["events_path"]).field("timestamp").type == pa.timestamp("ms")

    items = pl.read_parquet(made["items_path"])
    assert items["title"].to_list() == ['Café "Noir": A (1995)', "Second (1996)", "unknown"]
    assert items["genres"].to_list() == [["Comedy", "Drama"], [], []]
    first = datetime.date(1995, 2, 2) if name == "ml-100k" else datetime.date(1995, 1, 1)
    assert items["release_date"].to_list() == [first, datetime.date(1996, 1, 1), None]
    assert pq.read_schema(made["items_path"]).field("release_date").type == pa.date32()
    assert ("imdb_url" in items.columns) == (name == "ml-100k")


def parquet_source(folder: Path, log: dict[str, Any], name: str = "interactions.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pl.DataFrame(log).write_parquet(folder / name)
    items = {"item_id": [1, 2], "title": ["A", "B (2001)"], "genres": [["X"], []], "release_year": [1990, None]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


def test_reads_a_parquet_log_that_has_only_positions(tmp_path: Path) -> None:
    source = parquet_source(tmp_path / "in", {"user_id": [5, 5], "item_id": [2, 1], "position": [0, 1]})
    made = MovieLens(source=str(source)).make(str(tmp_path / "out"))
    assert pl.read_parquet(made["events_path"]).rows() == [(5, 2, 0), (5, 1, 1)]
    items = pl.read_parquet(made["items_path"])
    assert items["release_date"].to_list() == [datetime.date(1990, 1, 1), datetime.date(2001, 1, 1)]


def test_reads_the_named_parquet_log(tmp_path: Path) -> None:
    log = {"user_id": [5], "item_id": [2], "rating": [3], "timestamp": [datetime.datetime(2000, 1, 1)]}
    source = parquet_source(tmp_path / "in", log, "liked.parquet")
    made = MovieLens(source=str(source), interactions="liked.parquet").make(str(tmp_path / "out"))
    assert pl.read_parquet(made["events_path"]).rows() == [(5, 2, datetime.datetime(2000, 1, 1), 3.0, "not liked")]


@pytest.mark.parametrize(
    ("layout", "file", "content", "names"),
    [
        ("ml-100k", "u.data", b"", ["u.data", "is empty", "user<tab>item"]),
        ("ml-100k", "u.data", b"1\t2\t3\n", ["u.data", "user<tab>item<tab>rating<tab>timestamp"]),
        ("ml-100k", "u.data", b"1\tx\t3\t4\n", ["u.data", "column item", "'x'", "int64"]),
        ("ml-100k", "u.data", b"1\t\t3\t4\n", ["u.data", "column item_id", "empty value"]),
        ("ml-100k", "u.data", b"1\t9\t3\t4\n", ["u.data", "item_id", "9", "u.item"]),
        ("ml-100k", "u.data", b"1\t1\t8\t4\n", ["u.data", "rating", "8", "0 to 5"]),
        ("ml-100k", "u.item", b"1|Film|01-Jan-1995\n", ["u.item", "takes the fields"]),
        ("ml-1m", "ratings.dat", b"1::2::3\n", ["ratings.dat", "UserID::MovieID::Rating::Timestamp"]),
        ("ml-1m", "ratings.dat", b"1::y::3::4\n", ["ratings.dat", "column MovieID", "'y'"]),
        ("ml-1m", "movies.dat", b"", ["movies.dat", "is empty"]),
        ("ml-latest-small", "ratings.csv", b"userId,film,rating,timestamp\n1,1,4,5\n", ["ratings.csv", "movieId"]),
        ("ml-latest-small", "ratings.csv", b"userId,movieId,rating,timestamp\n", ["ratings.csv", "no events"]),
        ("ml-latest-small", "movies.csv", b"movieId,title,genres\n1,A,B\n1,A,B\n", ["movies.csv", "more than once"]),
    ],
)
def test_refuses_a_bad_file_in_one_sentence(
    tmp_path: Path, layout: str, file: str, content: bytes, names: list[str]
) -> None:
    source = write_layout(tmp_path / "in", LAYOUTS[layout] | {file: content})
    with pytest.raises(InputError) as refused:
        MovieLens(source=str(source)).make(str(tmp_path / "out"))
    assert "\n" not in str(refused.value)
    for name in names:
        assert name in str(refused.value)
    assert not (tmp_path / "out" / "events.parquet").exists()


def test_refuses_a_source_that_is_none(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"missing"):
        MovieLens(source=str(tmp_path / "missing")).make(out)
    with pytest.raises(InputError, match=r"missing\.zip: no such file"):
        MovieLens(source=str(tmp_path / "missing.zip")).make(out)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"bad\.zip: not a zip file"):
        MovieLens(source=str(tmp_path / "bad.zip")).make(out)
    other = write_layout(tmp_path / "other", {"readme.txt": b"x"})
    with pytest.raises(InputError, match=r"takes one of .*ratings\.csv.* got readme\.txt"):
        MovieLens(source=str(other)).make(out)
    half = write_layout(tmp_path / "half", {"u.data": b"1\t1\t1\t1\n"})
    with pytest.raises(InputError, match=r"has u\.data but not u\.item"):
        MovieLens(source=str(half)).make(out)


def test_refuses_two_data_sets_and_a_parquet_log_without_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_layout(tmp_path / "two" / name, LAYOUTS["ml-100k"])
    with pytest.raises(InputError, match=r"more than one folder"):
        MovieLens(source=str(tmp_path / "two")).make(str(tmp_path / "out"))
    source = parquet_source(tmp_path / "in", {"user_id": [5], "item_id": [2]})
    with pytest.raises(InputError, match=r"interactions\.parquet: has no column timestamp"):
        MovieLens(source=str(source)).make(str(tmp_path / "out"))


@pytest.mark.skipif(not (DATA / "ml-100k").is_dir(), reason=f"no MovieLens at {DATA} (set INTENTREC_DATA)")
@pytest.mark.parametrize(
    ("name", "log", "counts"),
    [
        ("ml-100k", "interactions.parquet", (943, 1682, 100_000)),
        ("ml-1m", "interactions.parquet", (6040, 3883, 999_611)),
        ("ml-1m", "liked.parquet", (6038, 3883, 575_281)),
    ],
)
def test_real_data_keep_their_order(tmp_path: Path, name: str, log: str, counts: tuple[int, int, int]) -> None:
    made = MovieLens(source=str(DATA / name), interactions=log).make(str(tmp_path))
    assert (made["users"], made["items"], made["events"]) == counts
    events, source = pl.read_parquet(made["events_path"]), pl.read_parquet(DATA / name / log)
    for column in source.columns:
        assert (events[column] == source[column].cast(events[column].dtype)).all()
