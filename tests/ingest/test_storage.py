"""What is wrong with storage is told in one sentence that names the path: local, and of a real S3 server."""

from __future__ import annotations

import mmap
import random
import re
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import patience
from ingest.arrow_files import RemoteObject
from ingest.errors import InputError, StorageError
from ingest.s3 import PatientS3
from ingest.storage import (
    BLOCK,
    exists,
    list_folders,
    list_names,
    make_folder,
    open_blocks,
    open_file,
    open_filesystem,
    read_range,
    read_text,
    size_of,
    walk,
    write_text,
)
from tests.disk import SmallDisk
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


def test_marks_of_folders_are_no_files(s3: ObjectStore) -> None:
    """Empty objects that some programs make, for a folder to be seen."""
    s3.make_bucket("marks")
    for name in ("a.parquet", "day=1/b.parquet"):
        write_text(f"s3://marks/log/{name}", "text")
    filesystem, _ = open_filesystem("s3://marks")
    for key in ("log/", "log/day=1/", "log/day=2/"):
        filesystem.call_s3("put_object", Bucket="marks", Key=key, Body=b"")
    found = walk("s3://marks/log")
    assert (list(found.files), found.left_out) == (["a.parquet", "day=1/b.parquet"], {})
    assert list_names("s3://marks/log") == ["a.parquet", "day=1", "day=2"]
    assert list_folders("s3://marks/log") == ["day=1", "day=2"]
    assert list_names("s3://marks/log/day=2") == []


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


@pytest.mark.parametrize("first", ["early", "late"])
def test_a_file_that_two_write_at_a_time_is_whole_at_any_time(first: str, tmp_path: Path) -> None:
    """As a task does that was taken for lost, and the one in its place: that one's is the file."""
    url = str(tmp_path / "file")
    early, late = open_file(url, "wb"), open_file(url, "wb")
    early.__enter__().write(b"x" * 200_000)
    late.__enter__().write(b"x" * 300_000)
    if first == "late":
        late.__exit__(None, None, None)
    with pytest.raises(OSError, match="another process has begun to write this file meanwhile"):
        early.__exit__(None, None, None)
    if first == "early":
        assert [path.name for path in tmp_path.iterdir()] == [".file.partial"]
        late.__exit__(None, None, None)
    assert size_of(url) == 300_000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("sent", [0, 55 * 2**20], ids=["nothing sent yet", "a part sent"])
def test_an_object_that_is_not_whole_does_not_appear(s3: ObjectStore, sent: int) -> None:
    """Also where what writes ends in good order, as a Parquet file with the rows that it has."""
    s3.make_bucket("halves")
    url = f"s3://halves/{sent}.parquet"
    write_text(url, "before")

    def interrupted() -> None:
        with open_file(url, "wb") as file:
            file.write(bytes(sent))
            with pq.ParquetWriter(file, pa.schema([("a", pa.int64())])) as writer:
                writer.write_table(pa.table({"a": [1]}))
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_text(url) == "before"
    filesystem, _ = open_filesystem(url)
    assert not filesystem.call_s3("list_multipart_uploads", Bucket="halves").get("Uploads")


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


def test_a_full_disk(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is waited for, for so long; then nothing is left of what did not fit."""
    target = str(small_disk.folder / "file")
    write_text(target, "before")
    small_disk.fill()
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.5)
    content = "more than fits" * 9999
    with pytest.raises(StorageError, match=r"/.file.partial: has failed for 0.5 s, .*No space left"):
        write_text(target, content)
    assert sorted(path.name for path in small_disk.folder.iterdir()) == ["file", "filler"]
    assert read_text(target) == "before"
    monkeypatch.setattr(patience, "RETRY_SECONDS", 60.0)
    threading.Timer(0.5, small_disk.make_room).start()
    write_text(target, content)
    assert read_text(target) == content


def test_a_server_that_is_away_is_waited_for_and_told_once(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also in the middle of a file, whose first part was sent already."""
    s3.make_bucket("away")
    told: list[str] = []
    monkeypatch.setattr(patience.Outage, "tell", told.append)
    monkeypatch.setattr(patience, "TOLD_SECONDS", 0.5)
    content = random.Random(1).randbytes(60 * 2**20)  # s3fs sends 50 MiB at a time
    with open_file("s3://away/file", "wb") as file:
        file.write(content[: 55 * 2**20])
        s3.stop(kill=True)
        threading.Timer(3, s3.start).start()
        file.write(content[55 * 2**20 :])
    assert read_range("s3://away/file", 0, len(content)) == content
    went, back = told
    assert re.match(r"s3://away has failed for \d s \(Could not connect to .*\): it is asked again", went)
    assert re.match(r"s3://away is back after \d+ s", back)


def test_refused_is_refused_at_once(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("refused")
    for name, value in s3.read_only.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^s3://refused/file: may not be written") as error:
        write_text("s3://refused/file", "text")
    assert not isinstance(error.value, StorageError)
    assert time.monotonic() - began < 10


def test_credentials_that_end_are_read_anew(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of a file, which another process writes; the server takes the old ones no more."""
    s3.make_bucket("renewed")
    file, names = tmp_path / "credentials", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

    def written(keys: dict[str, str]) -> None:
        file.write_text("[default]\n" + "".join(f"{name.lower()} = {keys[name]}\n" for name in names))

    written(s3.environment)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in names:
        monkeypatch.delenv(name)
    write_text("s3://renewed/file", "text")
    source = RemoteObject("s3://renewed/file")
    assert source.read_at(2, 0) == b"te"
    before = dict(s3.environment)
    s3.stop()
    s3.environment |= {name: secrets.token_hex(20) for name in names}
    try:
        s3.start()
        for ask in (lambda: read_text("s3://renewed/file"), lambda: source.read_at(2, 2)):
            with pytest.raises(InputError, match=r"^s3://renewed/file: may not be read"):
                ask()
        written(s3.environment)
        assert source.read_at(2, 2) == b"xt"
        write_text("s3://renewed/file", "other")
        assert read_text("s3://renewed/file") == "other"
    finally:
        s3.stop()
        s3.environment |= before
        s3.start()
