"""Reading from a real S3 server that is cut off, overloaded, killed and started again: every row comes once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare
from tests.faulty import FaultyProxy
from tests.ingest.data.test_reader import log_of, tokens_of
from tests.s3 import ObjectStore


@pytest.fixture(scope="module")
def url(s3: ObjectStore) -> str:
    """A log that is prepared in the object store, in many small row groups."""
    s3.make_bucket("ingest")
    with s3.filesystem().open("ingest/log/events.parquet", "wb") as file:
        pq.write_table(log_of(), file)
    config = {
        "events": "s3://ingest/log/events.parquet",
        "time_unit": "s",
        "row_group_interactions": 40,
        "shard_interactions": 120,
    }
    prepare(DataConfig.model_validate(config), "s3://ingest/data", lambda _: None)
    return "s3://ingest/data"


@pytest.fixture
def proxy(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between this process and the server."""
    proxy = FaultyProxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()


def reader(url: str, **config: object) -> Reader:
    manifest = load_manifest(url)
    settings = ReaderConfig.model_validate({"tokens": 30, "shuffle_buffer": 80, "fetch": 2} | config)
    return Reader(url, manifest, load_items(url, manifest), "train", settings)


def test_an_epoch_has_every_row_once_though_connections_break_and_the_server_is_busy(
    url: str, proxy: FaultyProxy
) -> None:
    found = reader(url)
    whole = tokens_of([batch for batch, _ in found.epoch(0)])
    batches = []
    for number, (batch, _) in enumerate(found.epoch(1)):
        batches.append(batch)
        if number % 5 == 0:
            proxy.faults += ["reset", "busy", "reset"]
            proxy.cut_all()
    assert number > 20
    assert proxy.connections > 20
    assert tokens_of(batches) == whole


def test_an_epoch_goes_on_after_the_server_was_killed_and_started_again(url: str, s3: ObjectStore) -> None:
    found = reader(url)
    whole = tokens_of([batch for batch, _ in found.epoch(0)])
    batches = []
    for number, (batch, _) in enumerate(found.epoch(1)):
        batches.append(batch)
        if number == 3:
            s3.stop(kill=True)
            threading.Timer(3, s3.start).start()
    assert tokens_of(batches) == whole


@pytest.mark.parametrize("fault", ["silent", "busy"])
def test_a_storage_that_stays_away_is_an_error_that_names_the_object(url: str, proxy: FaultyProxy, fault: str) -> None:
    found = reader(url, retry_seconds=2)
    proxy.faults += [fault] * 10_000
    proxy.cut_all()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"s3://ingest/data/train/part-[\d-]+\.parquet: has failed for 2 s"):
        list(found.epoch(0))
    assert time.monotonic() - began < 60


def test_wrong_keys_are_refused_at_once_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch, s3: ObjectStore
) -> None:
    found = reader(url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"part-[\d-]+\.parquet: may not be read") as error:
        list(found.epoch(0))
    assert time.monotonic() - began < 20
    assert "not-the-right-secret" not in str(error.value)


def test_no_credential_is_in_what_prepare_writes(url: str, s3: ObjectStore) -> None:
    filesystem = s3.filesystem()
    secrets = [s3.environment[name].encode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    for path in filesystem.find("ingest/data"):
        content = filesystem.cat_file(path)
        assert not any(secret in content for secret in secrets), path
