"""What the files of a log hold, from their footers alone: types, row groups and rows; and how the log is cut in pieces.

A piece is a run of row groups, of one file or of several small ones, that a task reads at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.log import FileTypes, common_types, event_columns, event_sources, events_of
from ingest.raw.columns import RawFile

FILES_A_TASK = 100
_THREADS = 8

Part = tuple[str, int, int, int]
"""A file's row groups, from the first to before the last, and the rows of the file before them."""


def survey_files(config: DataConfig, urls: list[str]) -> dict[str, Any]:
    """The types of the log's columns in each file, and the rows of its row groups. Refuses columns of a wrong type."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return {"files": list(threads.map(lambda url: _survey(config, url), urls))}


def _survey(config: DataConfig, url: str) -> dict[str, Any]:
    sources = event_sources(config)
    with RawFile(url, event_columns(config)) as file:
        schema = events_of(config, file.empty()).schema
        numbers = [name for name, kind in schema.items() if kind.is_integer() and name in sources]
        ranges = {name: file.integer_range(sources[name]) for name in numbers}
        return {
            "url": url,
            "types": {name: type_name(kind) for name, kind in schema.items()},
            "ranges": {name: found for name, found in ranges.items() if found is not None},
            "of_folders": [name for name in schema if sources.get(name) in file.of_folders],
            "rows": file.rows,
        }


def log_types(config: DataConfig, files: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The type of each column in the log as a whole, by its name. Raises `InputError` where files do not agree."""
    known = [
        FileTypes(
            file["url"],
            {name: type_of(kind) for name, kind in file["types"].items()},
            file["ranges"],
            file["of_folders"],
        )
        for file in files
    ]
    return {name: type_name(kind) for name, kind in common_types(known, event_sources(config)).items()}


def type_name(kind: pl.DataType) -> str:
    return f"list {kind.inner}" if isinstance(kind, pl.List) else str(kind)


def type_of(name: str) -> pl.DataType:
    """The type that `type_name` calls `name`; `InputError` where it is none."""
    if name.startswith("list "):
        return pl.List(type_of(name.removeprefix("list ")))
    found = getattr(pl, name, None)
    if not isinstance(found, type) or not issubclass(found, pl.DataType):
        raise InputError(f"{name!r} is no type of a column")
    return found()


def pieces_of(files: Sequence[dict[str, Any]], events: int) -> list[list[Part]]:
    """The log as pieces of about `events` rows, in its order; a row group is never cut here."""
    pieces: list[list[Part]] = []
    room = 0
    for file in files:
        before = 0
        for group, rows in enumerate(file["rows"]):
            if rows > room or not pieces:
                pieces.append([])
                room = events
            piece = pieces[-1]
            if piece and piece[-1][0] == file["url"]:
                url, first, _, begin = piece[-1]
                piece[-1] = (url, first, group + 1, begin)
            else:
                piece.append((file["url"], group, group + 1, before))
            before += rows
            room -= rows
    return pieces
