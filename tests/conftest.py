"""Fixtures shared by the tests of tables, training and evaluation; TorchRec is imported only by those who ask."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.disk import SmallDisk
from tests.s3 import ObjectStore

if TYPE_CHECKING:
    from tests.scenarios import TwoWorkers
    from tests.small import Data


gc.disable()  # until all tests are collected: what is imported stays
hypothesis.settings.register_profile("untimed", deadline=None)  # the first example compiles
hypothesis.settings.load_profile("untimed")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside the other process of tests
WAITING = "test_faults.py"
"""What takes longest by far, most of it without computing."""


@cache
def ray_of(path: Path) -> str:
    """Whether tests of this file share the session's Ray cluster, start one of their `own`, or need none."""
    text = path.read_text()
    if "mark.ray" not in text:
        return ""
    return "shared" if "ray_session" in text or "stages: str" in text else "own"


@cache
def scope_of(path: Path) -> str:
    """What tests of this file share with those of others, and so have to run in one process: the session's Ray cluster,
    or the two workers of tests/scenarios.py."""
    if ray_of(path) == "shared":
        return "shared cluster"
    return "two workers" if "two_workers" in path.read_text() else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first: faults, which wait more than they compute, beside what shares one cluster and what
    shares two workers; then what else starts clusters of its own, the longest files first, so that no process is left
    with one of them at the end."""
    scopes = ["shared cluster", "two workers", "own cluster", ""]

    def place(item: pytest.Item) -> tuple[int, int, str]:
        if item.path.name == WAITING:
            return -1, 0, ""
        if ray_of(item.path) == "own":
            return scopes.index("own cluster"), -item.path.stat().st_size, str(item.path)
        return scopes.index(scope_of(item.path)), 0, ""

    items.sort(key=place)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes, those of one scope run in one, files of others in whichever is free. (A
    group by marks, `--dist=loadgroup` of pytest-xdist 3.8, has no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return scope_of(config.rootpath / file) or file

        def _reschedule(self, node: Any) -> None:
            """A process takes a further file with its last test but one: not before, when another may be free."""
            if node.shutting_down or not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
                super()._reschedule(node)

    config.option.loadscopereorder = False
    return ByScope(config, log)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server; this process and those that it starts find it by the usual AWS variables."""
    store = ObjectStore(tmp_path_factory.mktemp("s3"))
    before = dict(os.environ)
    store.start()
    os.environ.update(store.environment)
    yield store
    store.stop()
    for name in store.environment:
        os.environ.pop(name)
        os.environ.update({name: before[name]} if name in before else {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 16 MiB; the test is skipped where this process may not mount one."""
    try:
        disk = SmallDisk(tmp_path / "disk", 16)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no small disk can be mounted: {error.stderr}")
    yield disk
    disk.close()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small data set with several row groups, one with a single training row group, one split in time, and one of
    `simulate`.

    In the one that is split in time most users have several targets.
    """
    from tests.small import make_data, make_simulated

    folder = tmp_path_factory.mktemp("small")
    return {
        "data": make_data(folder / "several"),
        "one group": make_data(folder / "single", users=20, row_group=10_000),
        "in time": make_data(folder / "in-time", split={"kind": "point_in_time", "validation": "12h", "test": "3d"}),
        "simulated": make_simulated(folder / "simulated"),
    }


@pytest.fixture(scope="session")
def data(prepared: dict[str, str]) -> Data:
    from tests.small import Data

    return Data(prepared["data"])


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    from tests.small import one_process

    with one_process():
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one and two workers leave checkpoints for each other."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def two_workers(prepared: dict[str, str], shared: Path) -> Iterator[TwoWorkers]:
    """Two processes that run every scenario of tests/scenarios.py, after one process has left its checkpoint."""
    from embeddings.workers import Worker
    from tests.scenarios import TwoWorkers, run
    from tests.small import one_process

    with one_process():
        run("save", prepared, shared, Worker())
    workers = TwoWorkers(prepared, shared)
    yield workers
    workers.close()
