"""prepare's tasks on a real Ray cluster: the same bytes as in one process, also where workers die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster.config import ClusterConfig
from cluster.runner import OnRay
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare
from ingest.prepare.tasks import Call
from ingest.storage import list_files, open_file
from tests.ingest.prepare.prepare_reference import config_for, random_log, write_log
from tests.ingest.prepare.test_prepare import MANY_PARTITIONS, contents
from tests.s3 import ObjectStore

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray


@pytest.fixture
def runner(ray_session: Cluster) -> Iterator[OnRay]:
    with ExitStack() as joined, OnRay(ClusterConfig(workers=2), joined) as runner:
        yield runner


def test_a_cluster_and_one_process_write_the_same_bytes(
    runner: OnRay, s3: ObjectStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Locally, and in the object store."""
    write_log(tmp_path, *random_log(7, "string"), "string")
    config = config_for(tmp_path, "point_in_time", **MANY_PARTITIONS)
    prepare(config, str(tmp_path / "here"), lambda _: None)
    prepare(config, str(tmp_path / "there"), lambda _: None, runner)
    expected = contents(tmp_path / "here")
    assert contents(tmp_path / "there") == expected
    assert "partitions sorted: 100%" in capfd.readouterr().err
    s3.make_bucket("prepare")
    prepare(config, "s3://prepare/data", lambda _: None, runner)
    found = {}
    for url in list_files("s3://prepare/data"):
        with open_file(url) as file:
            found[url.removeprefix("s3://prepare/data/")] = file.read()
    assert found == expected


def die_once(folder: str, task: int) -> dict[str, Any]:
    """A task whose first worker is killed in the middle of it."""
    mark = Path(folder, f"tried-{task}")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return {"task": task}


def test_a_task_whose_worker_is_killed_is_made_again(runner: OnRay, tmp_path: Path) -> None:
    calls = [Call(die_once, (str(tmp_path), task), str(tmp_path / f"{task}.json")) for task in range(3)]
    runner.run(calls, "killed")
    assert [(tmp_path / f"{task}.json").read_text() for task in range(3)] == [
        f'{{"task": {task}}}' for task in range(3)
    ]


def test_a_refusal_in_a_task_is_one_sentence(runner: OnRay, tmp_path: Path) -> None:
    events, items = random_log(7, "string")
    events[60]["user_id"] = None
    write_log(tmp_path, events, items, "string")
    config = config_for(tmp_path, "leave_one_out", **MANY_PARTITIONS)
    with pytest.raises(InputError, match=r"events/\w\.parquet: column 'user_id' has no value in row \d+$"):
        prepare(config, str(tmp_path / "out"), lambda _: None, runner)
    assert not (tmp_path / "out").exists()
