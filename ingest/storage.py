"""Paths that are local or in an object store (s3://...), read and written through one small set of functions.

Credentials and endpoint come from the usual AWS variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL ...), never from a URL or a file of ours. A file system is opened in the process that uses it:
s3fs does not survive a fork.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow.fs
from fsspec.core import url_to_fs

from ingest.errors import InputError


def is_remote(url: str) -> bool:
    """Whether `url` names an object store and not a local path."""
    return "://" in url and not url.startswith("file://")


def join(url: str, *parts: str) -> str:
    """`url` with `parts` appended, for local paths and URLs alike."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds `url`, and the path in it."""
    try:
        filesystem, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: not a path that can be opened: {error}") from None
    return filesystem, path


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same for Arrow: a `pyarrow.fs.FileSystem` and the path in it. Local files are read natively."""
    if not is_remote(url):
        return pyarrow.fs.LocalFileSystem(), str(Path(url.removeprefix("file://")).absolute())
    filesystem, path = open_filesystem(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


def exists(url: str) -> bool:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return bool(filesystem.exists(path))


def list_files(url: str, suffix: str = "") -> list[str]:
    """The files below the folder `url` whose names end in `suffix`, sorted by path; `url` itself if it is a file.

    Hidden files and those below a hidden folder are passed over. Raises `InputError` where nothing is there.
    """
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if filesystem.isfile(path):
        return [url]
    found = sorted(filesystem.find(path)) if filesystem.exists(path) else []
    prefix = path.rstrip("/")
    names = [name[len(prefix) :].strip("/") for name in found]
    kept = [
        name for name in names if name.endswith(suffix) and not any(p.startswith((".", "_")) for p in name.split("/"))
    ]
    if not kept:
        wanted = f" ending in {suffix}" if suffix else ""
        raise InputError(f"{url}: no files{wanted} there")
    return [join(url, name) for name in kept]


def make_folder(url: str) -> None:
    """Make the folder `url`; an object store needs none."""
    filesystem, path = open_filesystem(url)
    filesystem.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Remove the file or the folder `url` with all in it; nothing happens where it is not there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextmanager
def open_file(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open `url`; a local file that is written appears under its name only when it is complete."""
    filesystem, path = open_filesystem(url)
    if "w" not in mode or is_remote(url):
        with filesystem.open(path, mode) as file:
            yield file
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open(mode) as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_text(url: str) -> str:
    with open_file(url) as file:
        return str(file.read().decode())


def write_text(url: str, text: str) -> None:
    with open_file(url, "wb") as file:
        file.write(text.encode())


def list_folders(url: str) -> list[str]:
    """The names of the folders right below `url`, sorted; none where it is not there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if not filesystem.exists(path):
        return []
    entries = filesystem.ls(path, detail=True)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")
