"""MovieLens, in each form in which GroupLens ships it, to the two Parquet files of the data contract.

Read are ml-100k (u.data, u.item), ml-1m and ml-10m (.dat with '::'), ml-20m, 25m, 32m and ml-latest (.csv), from a
.zip or a folder, and a Parquet form (interactions.parquet, items.parquet). The log is streamed, some 16 MB of text
at a time and in its own order, so 32 million ratings take 20 s and under 1 GB; the items are held whole.
"""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Annotated, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import AfterValidator
from tqdm import tqdm

from ingest import storage
from ingest.errors import InputError
from ingest.sources.registry import Source, register

LIKED_FROM = 4
BLOCK_BYTES = 16 << 20

GENRE_FLAGS = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
NO_GENRES = ("unknown", "(no genres listed)")

Opener = Callable[[], AbstractContextManager[IO[bytes]]]
Files = dict[str, Opener]


@register
class MovieLens(Source):
    """The data as GroupLens ships them."""

    kind: Literal["movielens"] = "movielens"
    source: Annotated[str, AfterValidator(storage.absolute)]
    """A folder or a .zip."""
    interactions: str = "interactions.parquet"
    """Which file, where the source is a folder of Parquet."""

    def files(self) -> dict[str, str]:
        return storage.walk(self.source).files

    def make(self, destination: str) -> dict[str, Any]:
        """Write `destination`/events.parquet and items.parquet.

        events: user_id, item_id (int64), timestamp[ms] or, where the source has only an order, position (int32); where
        it has ratings also rating (float32) and liked ("liked" from a rating of 4 on, else "not liked"). Rows keep the
        log's order. items: item_id, title, genres list<string>, release_date (date32, null if unknown; 1 January where
        only the year is known) and what else the source has.

        Returns paths and counts (users, items, events, seconds). Raises `InputError` for what cannot be read as such.
        """
        begun = time.monotonic()
        events_path, items_path = (storage.join(destination, name) for name in (self.events_path, self.items_path))
        with _open_source(self.source) as files:
            layout = _find_layout(self.source, files, self.interactions)
            items = _finish_items(layout.read_items(files[layout.items]), layout.items)
            with storage.open_file(events_path, "wb") as file, files[layout.log]() as log:
                users, events = _write_log(layout, log, file, pa.array(items["item_id"]))
            with storage.open_file(items_path, "wb") as file:
                pq.write_table(_to_arrow(items), file, compression="zstd")
        return {
            "events_path": events_path,
            "items_path": items_path,
            "users": users,
            "items": items.height,
            "events": events,
            "seconds": round(time.monotonic() - begun, 3),
        }


def _write_log(layout: Layout, log: IO[bytes], file: IO[bytes], known_items: pa.Array) -> tuple[int, int]:
    """Write the events, a batch at a time; gives the numbers of users and events."""
    users, events = np.zeros(0, np.int64), 0
    writer: pq.ParquetWriter | None = None
    for batch in tqdm(layout.read_log(log), desc="import", unit="batch", delay=1):
        table = _finish_events(batch, layout, known_items)
        writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
        users = np.union1d(users, table["user_id"].to_numpy())
        events += table.num_rows
    if writer is None or not events:
        raise InputError(f"{layout.log}: holds no events; takes at least one")
    writer.close()
    return len(users), events


@contextmanager
def _open_source(source: str) -> Iterator[Files]:
    """The files at `source` or in one folder below it, by name."""
    names = storage.walk(source).files
    if "" not in names:
        yield _by_name(source, {name: partial(storage.open_file, storage.join(source, name)) for name in names})
        return
    with storage.open_file(source) as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise InputError(f"{source}: not a zip file that can be read: {error}") from None
        with archive:
            members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            yield _by_name(source, {name: partial(archive.open, name) for name in members})


def _by_name(source: str, files: Files) -> Files:
    found: Files = {}
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        name = path.rsplit("/", 1)[-1]
        if path.count("/") <= 1 and name not in found:
            found[name] = files[path]
        elif path.count("/") == 1 and files.get(name) is not found.get(name) and name in _NAMES:
            raise InputError(f"{source}: holds {name} in more than one folder; takes one data set")
    return found


@dataclass(frozen=True)
class Text:
    """A form of MovieLens in text: log and items, each with its delimiter and, in this order, its own columns."""

    log: str
    log_delimiter: str
    log_columns: tuple[str, ...]
    items: str
    item_delimiter: str
    item_columns: tuple[str, ...]
    header: bool = False
    """Whether the files begin with the columns' names, and quote titles."""

    def read_log(self, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
        """Batches of user_id, item_id, rating and seconds."""
        delimiter, columns = self.log_delimiter, self.log_columns
        names = list(columns)
        if len(delimiter) > 1:  # between two colons there is a column of nothing
            names = [name for column in columns for name in (column, f"{column}:")][:-1]
        types = dict(zip(columns, (pa.int64(), pa.int64(), pa.float32(), pa.int64()), strict=True))
        try:
            for batch in pyarrow.csv.open_csv(
                file,
                pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, column_names=None if self.header else names),
                pyarrow.csv.ParseOptions(delimiter=delimiter[0], quote_char=False),
                pyarrow.csv.ConvertOptions(column_types=types, include_columns=columns),
            ):
                yield batch.rename_columns(["user_id", "item_id", "rating", "seconds"])
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
            raise _refusal(self.log, error, delimiter, columns, names) from None

    def read_items(self, opener: Opener) -> pl.DataFrame:
        """The list of films, UTF-8 or Latin-1."""
        delimiter, columns = self.item_delimiter, self.item_columns
        with opener() as file:
            content = file.read()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        separator = delimiter if len(delimiter) == 1 else "\x1f"
        types = {column: pa.string() for column in columns} | {columns[0]: pa.int64()}
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(text.replace(delimiter, separator).encode()),
                pyarrow.csv.ReadOptions(column_names=None if self.header else columns),
                pyarrow.csv.ParseOptions(delimiter=separator, quote_char='"' if self.header else False),
                pyarrow.csv.ConvertOptions(column_types=types, include_columns=columns),
            )
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
            raise _refusal(self.items, error, delimiter, columns, columns) from None
        frame = pl.DataFrame(table.rename_columns(["item_id", "title", *columns[2:]]))
        return frame.with_columns(pl.col("genres").str.split("|")) if "genres" in frame.columns else _from_flags(frame)


@dataclass(frozen=True)
class Parquet:
    """The form in Parquet, whose columns have the names of the contract."""

    log: str
    items: str = "items.parquet"

    def read_log(self, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
        parquet = self._open(file, self.log)
        has = parquet.schema_arrow.names
        times = [column for column in ("timestamp", "position") if column in has]
        missing = [column for column in ("user_id", "item_id") if column not in has] or ([] if times else ["timestamp"])
        if missing:
            takes = "user_id, item_id, and timestamp or position"
            raise InputError(f"{self.log}: has no column {missing[0]}; takes {takes}, got {', '.join(has)}")
        columns = ["user_id", "item_id", times[0], *(["rating"] if "rating" in has else [])]
        yield from parquet.iter_batches(batch_size=1 << 19, columns=columns)

    def read_items(self, opener: Opener) -> pl.DataFrame:
        with opener() as file:
            frame = pl.DataFrame(self._open(file, self.items).read())
        takes: dict[str, pl.DataType] = {"item_id": pl.Int64(), "title": pl.String(), "genres": pl.List(pl.String)}
        for column, kind in takes.items():
            if column not in frame.columns:
                has = ", ".join(frame.columns)
                raise InputError(f"{self.items}: has no column {column}; takes {', '.join(takes)}, got {has}")
            try:
                frame = frame.with_columns(pl.col(column).cast(kind))
            except pl.exceptions.PolarsError:
                got = frame[column].dtype
                raise InputError(f"{self.items}: column {column} is of the type {got}; takes {kind}") from None
        return frame

    def _open(self, file: IO[bytes], name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(file, coerce_int96_timestamp_unit="ms")  # nanoseconds would overflow after 2262
        except pa.ArrowInvalid as error:
            raise InputError(f"{name}: not a Parquet file that can be read: {error}") from None


Layout = Text | Parquet


def _find_layout(source: str, files: Files, interactions: str) -> Layout:
    layouts = (Parquet(interactions), *TEXTS)
    for layout in layouts:
        if layout.log in files:
            if layout.items not in files:
                raise InputError(f"{source}: has {layout.log} but not {layout.items}; takes both")
            return layout
    has = ", ".join(sorted(files)[:8]) or "nothing"
    logs = ", ".join(layout.log for layout in layouts)
    raise InputError(f"{source}: no MovieLens log there; takes one of {logs}, got {has}")


def _refusal(file: str, error: Exception, delimiter: str, columns: Sequence[str], names: Sequence[str]) -> InputError:
    takes = f"takes the fields {delimiter.join(columns)}".replace("\t", "<tab>")
    text = " ".join(str(error).split())
    if "Empty CSV" in text:
        return InputError(f"{file}: is empty; {takes}")
    if value := re.search(r"In CSV column #(\d+).* conversion error to (\w+): invalid value '(.*)'", text):
        column = names[int(value[1])] if int(value[1]) < len(names) else value[1]
        return InputError(f"{file}: column {column} holds {value[3]!r}; takes a number ({value[2]})")
    if fields := re.search(r"Expected (\d+) columns, got (\d+)(?:: (.*))?", text):
        got = f"the line {fields[3]!r}" if fields[3] else f"a line of {fields[2]} columns"
        return InputError(f"{file}: got {got}; {takes}")
    return InputError(f"{file}: {text}; {takes}")


def _finish_events(batch: pa.RecordBatch, layout: Layout, known_items: pa.Array) -> pa.Table:
    """The events of the contract; refuses a missing value, an item that is not known and a rating that is none."""
    columns: dict[str, pa.Array] = {}
    takes = {"user_id": pa.int64(), "item_id": pa.int64(), "position": pa.int32(), "rating": pa.float32()}
    takes |= {"timestamp": pa.timestamp("ms"), "seconds": pa.int64()}
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        if values.null_count:
            raise InputError(f"{layout.log}: column {column} holds an empty value; takes one in every row")
        if column == "timestamp" and not pa.types.is_timestamp(values.type):
            raise InputError(f"{layout.log}: column timestamp is of the type {values.type}; takes a timestamp")
        try:
            columns[column] = values.cast(takes[column], safe=column != "timestamp")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{layout.log}: column {column}: {error}; takes {takes[column]}") from None
    unknown = columns["item_id"].filter(pc.invert(pc.is_in(columns["item_id"], known_items)))
    if len(unknown):
        raise InputError(f"{layout.log}: column item_id holds {unknown[0]}; takes an item of {layout.items}")
    if "seconds" in columns:
        columns["timestamp"] = pc.multiply(columns.pop("seconds"), 1000).cast(pa.timestamp("ms"))
    if "rating" in columns:
        rating = columns.pop("rating")
        bad = rating.filter(pc.invert(pc.and_(pc.greater_equal(rating, 0), pc.less_equal(rating, 5))))
        if len(bad):
            raise InputError(f"{layout.log}: column rating holds {bad[0]}; takes 0 to 5")
        liked = pc.if_else(pc.greater_equal(rating, LIKED_FROM), 1, 0).cast(pa.int8())
        columns["rating"] = rating
        columns["liked"] = pa.DictionaryArray.from_arrays(liked, pa.array(["not liked", "liked"]))
    return pa.table(columns)


def _from_flags(frame: pl.DataFrame) -> pl.DataFrame:
    """u.item's nineteen genre flags as a list, and its dates such as 01-Jan-1995 as dates."""
    set_genres = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRE_FLAGS)
    return frame.select(
        "item_id",
        "title",
        genres=set_genres.list.drop_nulls(),
        release_date=pl.col("release_date").str.to_date("%d-%b-%Y", strict=False),
        imdb_url="imdb_url",
    )


def _finish_items(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Refuse a missing or repeated id; complete genres and release dates."""
    if frame.is_empty():
        raise InputError(f"{name}: holds no items; takes at least one")
    if frame["item_id"].null_count():
        raise InputError(f"{name}: column item_id holds an empty value; takes one in every row")
    if repeated := frame.filter(pl.col("item_id").is_duplicated())["item_id"].to_list():
        raise InputError(f"{name}: column item_id holds {repeated[0]} more than once; takes each id once")
    dates = [pl.col("release_date").cast(pl.Date)] if "release_date" in frame.columns else []
    years = [pl.col("release_year")] if "release_year" in frame.columns else []
    years.append(pl.col("title").str.extract(r"\((\d{4})[^()]*\)\s*$").cast(pl.Int32))
    other = [column for column in frame.columns if column not in ("item_id", "title", "genres", "release_date")]
    return frame.select(
        "item_id",
        "title",
        pl.col("genres").fill_null([]).list.eval(pl.element().filter(~pl.element().is_in([*NO_GENRES, ""]))),
        pl.coalesce(*dates, *(pl.date(year, 1, 1) for year in years)).alias("release_date"),
        *other,
    )


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    table = frame.to_arrow()
    plain = {pa.large_string(): pa.string(), pa.large_list(pa.large_string()): pa.list_(pa.string())}
    return table.cast(pa.schema([(field.name, plain.get(field.type, field.type)) for field in table.schema]))


TEXTS = (
    Text("u.data", "\t", ("user", "item", "rating", "timestamp"),
         "u.item", "|", ("item", "title", "release_date", "video_release_date", "imdb_url", *GENRE_FLAGS)),
    Text("ratings.dat", "::", ("UserID", "MovieID", "Rating", "Timestamp"),
         "movies.dat", "::", ("MovieID", "Title", "genres")),
    Text("ratings.csv", ",", ("userId", "movieId", "rating", "timestamp"),
         "movies.csv", ",", ("movieId", "title", "genres"), header=True),
)  # fmt: skip
_NAMES = {name for layout in (*TEXTS, Parquet("interactions.parquet")) for name in (layout.log, layout.items)}
