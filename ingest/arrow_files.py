"""Files as Arrow reads them: local ones and s3:// natively, and patiently what is not on this machine."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs

from ingest.errors import InputError
from ingest.patience import can_pass, patiently
from ingest.storage import absolute, is_remote, open_filesystem

_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE",
                 "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # fmt: skip


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The `pyarrow.fs.FileSystem` that holds `url`, and the path in it."""
    if not is_remote(url):
        return pyarrow.fs.LocalFileSystem(), absolute(url)
    if url.startswith("s3://"):
        return _arrow_s3(*(os.environ.get(name) for name in _S3_VARIABLES)), url.removeprefix("s3://")
    filesystem, path = open_filesystem(url)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@functools.lru_cache(maxsize=8)
def _arrow_s3(
    s3_endpoint: str | None, endpoint: str | None, region: str | None, default_region: str | None,
    authorities: str | None, *credentials: str | None,
) -> pyarrow.fs.S3FileSystem:  # fmt: skip
    """One client for each environment; it finds the credentials by itself."""
    options: dict[str, Any] = {}
    if s3_endpoint or endpoint:
        options["endpoint_override"] = s3_endpoint or endpoint
    if region or default_region:
        options["region"] = region or default_region
    if authorities:
        options["tls_ca_file_path"] = authorities
    return pyarrow.fs.S3FileSystem(**options)


class RemoteObject:
    """An object that is opened once and read by any thread; asked again for `seconds` where its storage fails."""

    def __init__(self, url: str, seconds: float | None = None) -> None:
        self.url, self.seconds = url, seconds
        self.handle = self._ask(self._opened)
        self.size: int = self.handle.size()

    def read_at(self, size: int, begin: int) -> bytes:
        return self._ask(lambda: self._read(size, begin))

    def _ask(self, ask: Callable[[], Any]) -> Any:
        try:
            return patiently(ask, self.url, self.seconds)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"{self.url}: may not be read: {' '.join(str(error).split())}") from None

    def _opened(self) -> pa.NativeFile:
        """With the credentials that there are by now, where those that the client has are refused."""
        try:
            return _open(self.url)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or can_pass(error):
                raise
            _arrow_s3.cache_clear()
            return _open(self.url)

    def _read(self, size: int, begin: int) -> bytes:
        try:
            return self.handle.read_at(size, begin)
        except OSError:  # Arrow does not say here whether it was refused
            self.handle = self._opened()
            return self.handle.read_at(size, begin)


def _open(url: str) -> pa.NativeFile:
    filesystem, path = arrow_filesystem(url)
    return filesystem.open_input_file(path)


class RemoteFile(io.RawIOBase):
    """A place in a `RemoteObject`, as pyarrow reads a file of Python."""

    def __init__(self, source: RemoteObject) -> None:
        super().__init__()
        self.source, self.position = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.source.size}[whence]
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        size = self.source.size - self.position if size is None or size < 0 else size
        data = self.source.read_at(size, self.position)
        self.position += len(data)
        return data


def open_arrow(url: str) -> pa.NativeFile | RemoteFile:
    """The file `url`, to be read by Arrow; a context manager."""
    return (
        RemoteFile(RemoteObject(url)) if is_remote(url) else pyarrow.fs.LocalFileSystem().open_input_file(absolute(url))
    )
