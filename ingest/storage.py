"""Paths that are local or in an object store (s3://...), read and written through one small set of functions.

Credentials and endpoint come from the usual AWS variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL ...), never from a URL or a file of ours. A file system is opened in the process that uses it:
s3fs does not survive a fork.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import fsspec
import pyarrow.fs
from fsspec.core import url_to_fs

from ingest.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


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
    """The same for Arrow: a `pyarrow.fs.FileSystem` and the path in it. Local files and s3:// are read natively."""
    if not is_remote(url):
        return pyarrow.fs.LocalFileSystem(), str(Path(url.removeprefix("file://")).absolute())
    if url.startswith("s3://"):
        return _arrow_s3(*(os.environ.get(name) for name in _S3_VARIABLES)), url.removeprefix("s3://")
    filesystem, path = open_filesystem(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
                 "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # fmt: skip


@functools.lru_cache(maxsize=8)
def _arrow_s3(
    s3_endpoint: str | None, endpoint: str | None, region: str | None, default_region: str | None,
    authorities: str | None, *credentials: str | None,
) -> pyarrow.fs.S3FileSystem:  # fmt: skip
    """One client for each environment; it finds the credentials by itself, and so goes on where they are renewed."""
    options: dict[str, Any] = {}
    if s3_endpoint or endpoint:
        options["endpoint_override"] = s3_endpoint or endpoint
    if region or default_region:
        options["region"] = region or default_region
    if authorities:
        options["tls_ca_file_path"] = authorities
    return pyarrow.fs.S3FileSystem(**options)


_PERMANENT = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE", "INVALID_CLIENT_TOKEN_ID", "NO_SUCH_BUCKET")
"""What an object store says that asking again does not mend."""


def patiently(ask: Callable[[], T], url: str, seconds: float) -> T:
    """The answer of `ask`, repeated with growing pauses while the object store of `url` fails, for up to `seconds`.

    Raises `FileNotFoundError` where nothing is there, and `InputError`, which names the object, where it may not be
    read or where the storage has not answered in time.
    """
    deadline, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return ask()
        except FileNotFoundError:
            raise
        except (OSError, TimeoutError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, PermissionError) or any(word in reason for word in _PERMANENT):
                raise InputError(f"{url}: may not be read: {reason}") from None
            if time.monotonic() + pause > deadline:
                raise InputError(f"{url}: the storage has failed for {seconds:g} s, at last with: {reason}") from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 15.0)


@contextmanager
def _told(url: str, writing: bool = False) -> Iterator[None]:
    """What keeps the storage of `url` from answering becomes an `InputError` that names it.

    That nothing is there to be read stays a `FileNotFoundError`.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{url}: may not be {'written' if writing else 'read'}: {error}") from None
    except OSError as error:
        nowhere = isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError)
        if writing and (nowhere or error.errno in (errno.EINVAL, errno.EROFS, errno.ENOSPC, errno.EDQUOT)):
            raise InputError(f"{url}: can not be written: {error}") from None
        raise
    except Exception as error:
        if is_remote(url) and _is_of_client(error):
            raise InputError(f"{url}: the storage can not be asked: {error}") from None
        raise


def _is_of_client(error: Exception) -> bool:
    """Whether the object store's client could not ask at all: no credentials, no such endpoint, no answer."""
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    return isinstance(error, BotoCoreError)


def _telling(function: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """`function`, whose first argument is a path or URL, with the errors of `_told`."""

    @functools.wraps(function)
    def told(url: str, /, *arguments: P.args, **options: P.kwargs) -> T:
        with _told(url):
            return function(url, *arguments, **options)

    return told


@_telling
def exists(url: str) -> bool:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return bool(filesystem.exists(path))


def list_files(url: str, suffix: str = "") -> list[str]:
    """The files below the folder `url` whose names end in `suffix`, sorted by path; `url` itself if it is a file.

    Hidden files and those below a hidden folder are passed over. Raises `InputError` where nothing is there.
    """
    return list(described_files(url, suffix))


@_telling
def described_files(url: str, suffix: str = "") -> dict[str, str]:
    """The same files, each with its size and its time of change (or ETag): other content, another text."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if filesystem.isfile(path):
        return {url: _description(filesystem.info(path))}
    found = filesystem.find(path, detail=True) if filesystem.exists(path) else {}
    prefix = path.rstrip("/")
    names = {name[len(prefix) :].strip("/"): _description(info) for name, info in sorted(found.items())}
    kept = {
        name: description
        for name, description in names.items()
        if name.endswith(suffix) and not any(part.startswith((".", "_")) for part in name.split("/"))
    }
    if not kept:
        wanted = f" ending in {suffix}" if suffix else ""
        raise InputError(f"{url}: no files{wanted} there")
    return {join(url, name): description for name, description in kept.items()}


def _description(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created")
    return f"{info['size']} {changed}"


@_telling
def list_names(url: str) -> list[str]:
    """The names of what is right below the folder `url`; none where it is not there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if not filesystem.exists(path):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))


def make_folder(url: str) -> None:
    """Make the folder `url`; an object store needs none."""
    filesystem, path = open_filesystem(url)
    with _told(url, writing=True):
        filesystem.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Remove the file or the folder `url` with all in it; nothing happens where it is not there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    with _told(url, writing=True):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


@contextmanager
def open_file(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open `url`; a local file that is written appears under its name only when it is complete."""
    filesystem, path = open_filesystem(url)
    with _told(url, "w" in mode):
        if "w" not in mode or is_remote(url):
            with filesystem.open(path, mode) as file:
                yield file
        else:
            with _replaced(Path(path), mode) as file:
                yield file


@contextmanager
def _replaced(target: Path, mode: str) -> Iterator[IO[Any]]:
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


def copy(source: str, target: str) -> None:
    """Copy a file, a part of it in memory at a time."""
    with open_file(source) as reading, open_file(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, 2**24)


def write_text(url: str, text: str) -> None:
    with open_file(url, "wb") as file:
        file.write(text.encode())


@_telling
def list_folders(url: str) -> list[str]:
    """The names of the folders right below `url`, sorted; none where it is not there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    if not filesystem.exists(path):
        return []
    entries = filesystem.ls(path, detail=True)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")
