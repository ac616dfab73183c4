"""The Parquet files of a raw log: which files of a folder are read, and the columns that folders' names give.

A file is known by its ending, or, where that says nothing, by the magic bytes at its beginning and end. All that is
left out is named. Folders named `key=value`, as Hive and Spark write them, are columns of the files below them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from ingest.errors import InputError
from ingest.storage import join, open_filesystem, storage_errors, walk

ENDINGS = (".parquet", ".parq", ".pq")
MAGIC = b"PAR1"
SMALLEST = 12
"""Bytes of the smallest file: the magic twice, and the length of the footer between them."""
MISSING = ("", "__HIVE_DEFAULT_PARTITION__")
_NO_DATA = re.compile(r"_SUCCESS|_metadata|_common_metadata|_committed_.*|_started_.*|\.(.*\.crc|DS_Store)")
_NAMED = 5
_THREADS = 8


def find_files(url: str, log: Callable[[str], None]) -> dict[str, str]:
    """The Parquet files below `url`, sorted by path; `url` itself if it is a file.

    Each has its size and time of change (or ETag). `log` is told what else is there, marker files of Spark and others
    (`_SUCCESS` ...) apart. Raises `InputError` where there is none.
    """
    files, left_out = walk(url)
    if "" in files:
        return {url: files[""]}
    unsure = [name for name in files if not name.lower().endswith(ENDINGS)]
    with ThreadPoolExecutor(_THREADS) as threads:
        is_parquet = threads.map(lambda name: _is_parquet(join(url, name), files[name]), unsure)
        left_out |= {name: "no Parquet file" for name, it_is in zip(unsure, is_parquet, strict=True) if not it_is}
    told = {name: why for name, why in left_out.items() if not _NO_DATA.fullmatch(name.rsplit("/", 1)[-1])}
    named = ", ".join(f"{name} ({why})" for name, why in list(told.items())[:_NAMED])
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    found = {join(url, name): description for name, description in files.items() if name not in left_out}
    if not found:
        raise InputError(f"{url}: no Parquet files there{f', but {named}{more}' if told else ''}")
    if told:
        log(f"{url}: left out are {named}{more}")
    return found


def _is_parquet(url: str, description: str) -> bool:
    if int(description.split()[0]) < SMALLEST:
        return False
    filesystem, path = open_filesystem(url)
    with storage_errors(url):
        return bool(filesystem.cat_file(path, end=4) == MAGIC and filesystem.cat_file(path, start=-4) == MAGIC)


def folder_values(url: str) -> dict[str, int | str | None]:
    """The values that the folders of `url` named `key=value` give, None where one is missing."""
    pairs = [folder.partition("=") for folder in url.split("/")[:-1]]
    return {unquote(key): _value(unquote(value)) for key, equals, value in pairs if equals and key}


def _value(text: str) -> int | str | None:
    """An integer where it is written as one is, so that its text is the same again."""
    if text in MISSING:
        return None
    is_integer = re.fullmatch(r"0|-?[1-9]\d{0,18}", text, re.ASCII) and -(2**63) <= int(text) < 2**63
    return int(text) if is_integer else text
