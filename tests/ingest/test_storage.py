"""What is wrong with storage is told in one sentence that names the path: local, and of a real S3 server."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import patience
from ingest.errors import InputError
from ingest.s3 import PatientS3
from ingest.storage import (
    BLOCK,
    exists,
    make_folder,
    open_blocks,
    open_file,
    read_range,
    read_text,
    size_of,
    walk,
    write_text,
)
from tests.s3 import ObjectStore


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    """A test's first client is made from the environment as it is then, and not kept for the next test."""
    PatientS3.clear_instance_cache()
    yield
    PatientS3.clear_instance_cache()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "may not be read"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "9"}, "Could not connect"),
    ],
)
def test_storage_that_can_not_be_asked(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], reason: str
) -> None:
    s3.make_bucket("told")
    monkeypatch.setattr(patience, "RETRY_SECONDS", 1.0)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    for ask in (exists, walk, read_text):
        with pytest.raises(InputError, match=f"^s3://told/some/file: .*{reason}"):
            ask("s3://told/some/file")


def test_a_bucket_that_is_not_there(s3: ObjectStore) -> None:
    url = "s3://not-there-at-all/some/file"
    assert not exists(url)
    with pytest.raises(FileNotFoundError):
        read_text(url)
    with pytest.raises(InputError, match=f"^{url}: can not be written: The specified bucket does not exist"):
        write_text(url, "text")


def test_a_local_path_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    below = str(tmp_path / "file" / "below")
    for write in (lambda: write_text(below, "text"), lambda: make_folder(below)):
        with pytest.raises(InputError, match=f"^{below}: can not be written"):
            write()
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    with pytest.raises(TypeError), open_file(str(target), "wb") as file:
        file.write("no bytes")
    assert list(target.parent.iterdir()) == []
    write_text(str(target), "whole")
    assert read_text(str(target)) == "whole"


@pytest.mark.parametrize("remote", [False, True])
def test_blocks_of_memory_become_a_file(remote: bool, s3: ObjectStore, tmp_path: Path) -> None:
    """One that appears when it is whole."""
    s3.make_bucket("blocks")
    url = "s3://blocks/folder/file" if remote else str(tmp_path / "folder" / "file")
    memory = mmap.mmap(-1, 3 * BLOCK)
    memory.write(random.Random(3).randbytes(3 * BLOCK))
    blocks = memoryview(memory)
    with open_blocks(url) as append:
        append(blocks[:BLOCK])
        append(blocks[BLOCK:])
        assert not exists(url)
    with open_file(url) as file:
        assert file.read() == blocks
    assert size_of(url) == 3 * BLOCK
    assert read_range(url, 5, BLOCK + 9) == blocks[5 : BLOCK + 9]
    with open_blocks(url) as append:
        append(blocks[:BLOCK])
        append(blocks[7 : 2 * BLOCK])  # which no file system takes as blocks
    with open_file(url) as file:
        assert file.read() == bytes(blocks[:BLOCK]) + bytes(blocks[7 : 2 * BLOCK])


def test_a_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with (
        pytest.raises(InputError, match=f"^{target}: can not be written: .*No space left"),
        open_file(str(target), "wb"),
    ):
        Path("/dev/full").write_text("more than fits")
    assert list(tmp_path.iterdir()) == []
