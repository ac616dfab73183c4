"""Paths that are local or in an object store (s3://...), read and written through one small set of functions.

A local path is taken as it stands, with any character in it; only a leading `~` is expanded. Credentials and endpoint
come from the usual AWS variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL ...), never from a URL or
a file of ours. A file system is opened in the process that uses it: s3fs does not survive a fork.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.spec import AbstractBufferedFile

from ingest.errors import InputError, StorageError
from ingest.patience import is_full, patiently

BLOCK = 4096
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(url: str) -> bool:
    """Whether `url` names an object store and not a local path."""
    return _scheme(url) != "file"


def _scheme(url: str) -> str:
    found = _SCHEME.match(url)
    return found[1] if found else "file"


def join(url: str, *parts: str) -> str:
    """`url` with `parts` appended, for local paths and URLs alike.

    Parts come from names in files, too: an absolute one is taken from `url`, and `..` is an `InputError`.
    """
    for part in parts:
        if ".." in part.split("/"):
            raise InputError(f"{url}: {part!r} would lead out of this folder")
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """The same place in every process, whatever folder that runs in: `~` expanded, a relative path from the current
    folder. A URL of an object store stays as it is."""
    return url if is_remote(url) else str(Path(os.path.expanduser(url.removeprefix("file://"))).absolute())


def _client(scheme: str) -> Any:
    if scheme != "s3":
        return fsspec.get_filesystem_class(scheme)
    from ingest.s3 import PatientS3  # takes a moment to import

    return PatientS3


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds `url`, and the path in it; nothing in a path is taken for a chain or a pattern."""
    try:
        kind = _client(_scheme(url))
        url = absolute(url)
        # no cache of listings: other processes write, and s3fs takes what is not in one for missing
        return kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: not a path that can be opened: {error}") from None


@contextmanager
def storage_errors(url: str, writing: bool = False) -> Iterator[None]:
    """What keeps the storage of `url` from answering is raised as an `InputError` that names it, and what can pass as
    a `StorageError`.

    That nothing is there to be read stays a `FileNotFoundError`.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{url}: may not be {'written' if writing else 'read'}: {error}") from None
    except OSError as error:
        if is_full(error):
            raise StorageError(f"{url}: can not be written: {error}") from None
        nowhere = isinstance(error, FileNotFoundError | NotADirectoryError | FileExistsError)
        if writing and (nowhere or error.errno in (errno.EINVAL, errno.EROFS)):
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


def exists(url: str) -> bool:
    with _asked(url) as (filesystem, path):
        return bool(filesystem.exists(path))


@contextmanager
def _asked(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of `url` and the path in it, which are asked anew."""
    filesystem, path = open_filesystem(url)
    with storage_errors(url):
        yield filesystem, path


class Listing(NamedTuple):
    """What is below a folder, by name in it and sorted; the name of a single file is empty."""

    files: dict[str, str]
    """Each file's size and its time of change (or ETag): other content, another text."""
    left_out: dict[str, str]
    """What is no file to be read, and why."""


def list_files(url: str, suffix: str = "") -> list[str]:
    """The files below the folder `url` whose names end in `suffix`, sorted by path; `url` itself if it is a file."""
    names = walk(url).files
    return [url] if "" in names else [join(url, name) for name in names if name.endswith(suffix)]


def walk(url: str) -> Listing:
    """All files below the folder `url`, in linked folders, too, each once; hidden ones are passed over.

    Hidden is what begins with a dot, or with an underscore unless it is `key=value`. Raises `InputError` where nothing
    is there.
    """
    with _asked(url) as (filesystem, path):
        if not filesystem.exists(path):
            here = "" if is_remote(url) or not Path(path).is_relative_to(Path.cwd()) else str(Path.cwd())
            hint = f" (relative paths are taken from the current folder, {here})" if here else ""
            raise InputError(f"{absolute(url)}: no such file or folder{hint}")
        if not is_remote(url):
            return _walk_local(path)
        if filesystem.isfile(path):
            return Listing({"": _description(filesystem.info(path))}, {})
        files, left_out = {}, {}
        for key, info in sorted(filesystem.find(path, detail=True).items()):
            name = key[len(path.rstrip("/")) :].strip("/")
            parts = name.split("/")
            hidden = next((place for place, part in enumerate(parts) if _is_hidden(part)), None)
            if hidden is not None:
                left_out["/".join(parts[: hidden + 1])] = "hidden"
            elif info["type"] == "file" and _is_there(info):
                files[name] = _description(info)
        return Listing(files, left_out)


def _walk_local(root: str) -> Listing:
    """First the folders that are there, then the links, so that what is there under its own name has that name."""
    files: dict[str, str] = {}
    left_out: dict[str, str] = {}
    waiting, links = [("", root)], list[tuple[str, str]]()
    seen, top = set[str](), f"{os.path.realpath(root)}/"
    while waiting or links:
        name, path = waiting.pop() if waiting else links.pop()
        real = os.path.realpath(path)
        above = top.startswith(f"{real.rstrip('/')}/")
        if real in seen or (above and name):
            left_out[name] = "a link to a folder above" if above else "a link to what is read already"
        elif os.path.isdir(path):
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
            for entry in entries:
                below = f"{name}/{entry.name}".lstrip("/")
                if _is_hidden(entry.name):
                    left_out[below] = "hidden"
                elif not below.isprintable() and "\\udc" in ascii(below):
                    left_out[ascii(below)] = "a name that is not UTF-8"
                else:
                    (links if entry.is_symlink() else waiting).append((below, entry.path))
        elif os.path.isfile(path):
            found = os.stat(path)
            files[name] = _description({"size": found.st_size, "mtime": found.st_mtime})
        else:
            left_out[name] = "a link to nothing" if os.path.islink(path) else "no file that can be read"
        seen.add(real)
    return Listing(dict(sorted(files.items())), dict(sorted(left_out.items())))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _description(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created")
    return f"{info['size']} {changed}"


def list_names(url: str) -> list[str]:
    """The names of what is right below the folder `url`, sorted; none where it is not there."""
    return [name for name, _ in _entries(url)]


def list_folders(url: str) -> list[str]:
    """The names of the folders right below `url`, sorted; none where it is not there."""
    return [name for name, kind in _entries(url) if kind == "directory"]


def _entries(url: str) -> list[tuple[str, str]]:
    with _asked(url) as (filesystem, path):
        entries = filesystem.ls(path, detail=True) if filesystem.exists(path) else []
        names = [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in entries if _is_there(entry)]
        return sorted(names)


def _is_there(entry: dict[str, Any]) -> bool:
    """Whether it is more than the mark of a folder that some programs leave in an object store."""
    return entry["type"] == "directory" or not entry["name"].endswith("/")


def make_folder(url: str) -> None:
    """Make the folder `url`; an object store needs none."""
    filesystem, path = open_filesystem(url)
    with storage_errors(url, writing=True):
        filesystem.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Remove the file or the folder `url` with all in it; nothing happens where it is not there."""
    filesystem, path = open_filesystem(url)
    with storage_errors(url, writing=True):
        if not filesystem.exists(path):
            return
        if is_remote(url) and any(letter in path for letter in "*?["):  # rm would take it for a pattern
            for name in filesystem.find(path):
                filesystem.rm_file(name)
        else:
            filesystem.rm(path, recursive=True)


@contextmanager
def open_file(url: str, mode: str = "rb") -> Iterator[IO[Any]]:
    """Open `url`; a file that is written appears under its name only when it is complete."""
    filesystem, path = open_filesystem(url)
    with storage_errors(url, "w" in mode):
        if "w" not in mode or is_remote(url):
            with filesystem.open(path, mode) as file:
                try:
                    yield file
                except BaseException:
                    if "w" in mode and isinstance(file, AbstractBufferedFile):
                        _discard(file)
                    raise
        else:
            with _replaced(Path(path)) as file:
                yield file


def _discard(file: AbstractBufferedFile) -> None:
    """Give up a remote file that is not whole: closed otherwise, it would be sent."""
    file.closed = True
    with suppress(Exception):  # what an object store has of it is no object, and hides no error
        file.discard()


@contextmanager
def open_blocks(url: str) -> Iterator[Callable[[memoryview], object]]:
    """Gives a call that appends to the new file `url` some blocks of `BLOCK` bytes, from memory that begins at a
    multiple of it.

    A local file is written past the page cache (O_DIRECT), as long as its file system can do so: filling that cache
    takes a processor far longer than anything else does of writing, and pushes out what others read.
    """
    if is_remote(url):
        with open_file(url, "wb") as file:
            yield file.write
        return
    with storage_errors(url, writing=True), _replaced(Path(absolute(url)), False, _past_the_cache) as file:

        def write(blocks: memoryview) -> None:
            while blocks:
                try:
                    blocks = blocks[file.write(blocks) :]
                except OSError as error:
                    flags = fcntl.fcntl(file, fcntl.F_GETFL)
                    if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                        raise
                    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)

        yield write


def _past_the_cache(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


class _LocalFile(io.FileIO):
    """A new file that waits for room where its disk is full."""

    error: StorageError | None = None
    """Which has ended its patience: what a buffer holds is not waited for once more."""

    def write(self, data: Any) -> int:
        if self.error is not None:
            raise self.error
        try:
            return patiently(lambda: io.FileIO.write(self, data), str(self.name), passes=is_full)
        except StorageError as error:
            self.error = error
            raise


@contextmanager
def _replaced(
    target: Path, buffered: bool = True, opener: Callable[[str, int], int] | None = None
) -> Iterator[IO[Any]]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed, or that was taken for lost and writes on
    own = None
    try:
        with _LocalFile(partial, "w", opener=opener) as raw, io.BufferedWriter(raw) as file:
            own = os.fstat(raw.fileno())
            yield file if buffered else raw
        if not _is(partial, own):
            raise OSError(errno.ESTALE, "another process has begun to write this file meanwhile", str(target))
        partial.replace(target)
    finally:
        if own is not None and _is(partial, own):
            partial.unlink(missing_ok=True)


def _is(path: Path, own: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), own)
    except FileNotFoundError:
        return False


def read_text(url: str) -> str:
    with open_file(url) as file:
        return str(file.read().decode())


def size_of(url: str) -> int:
    """The bytes of the file `url`."""
    with _asked(url) as (filesystem, path):
        return int(filesystem.size(path))


def read_range(url: str, begin: int, end: int) -> bytes:
    """The bytes of the file `url` from `begin` on and before `end`."""
    with _asked(url) as (filesystem, path):
        content: bytes = filesystem.cat_file(path, start=begin, end=end)
        return content


def copy(source: str, target: str) -> None:
    """Copy a file, a part of it in memory at a time."""
    with open_file(source) as reading, open_file(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, 2**24)


def write_text(url: str, text: str) -> None:
    with open_file(url, "wb") as file:
        file.write(text.encode())
