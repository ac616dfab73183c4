"""A command that is interrupted while workers of a Ray cluster are at work ends at once, and says so by its status."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.config import ClusterConfig
from cluster.launch import run_on_workers
from cluster.nodes import Room
from cluster.run_lock import FOLDER, Holder, run_lock
from ingest.errors import InputError
from ingest.storage import list_names, write_text

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray


def once_it_works(folder: Path, call: Callable[[], object]) -> threading.Thread:
    """Call it once the worker has begun."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while not (folder / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        call()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def work(folder: Path) -> None:
    config = ClusterConfig(workers={"min": 1, "max": 1})
    run_on_workers("tests.cluster.waits:wait", {"begun": str(folder / "begun")}, config, str(folder), "run")


def test_ctrl_c_interrupts_and_leaves_nothing(ray_session: Cluster, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's processes ignore it
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".result-77-1.json").write_text("of a process that was killed")
    thread = once_it_works(tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            work(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    room = Room(ClusterConfig(workers={"min": 1, "max": 2}))
    deadline = time.monotonic() + 60
    while room.free() < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert room.free() == 2
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_who_has_lost_the_run_writes_no_more(ray_session: Cluster, tmp_path: Path) -> None:
    """Where SIGINT is ignored, too, as by what a script starts in the background."""
    run = str(tmp_path / "run")

    def take() -> None:
        (name,) = list_names(f"{run}/{FOLDER}")
        number = int(name.removesuffix(".json")) + 1
        write_text(f"{run}/{FOLDER}/{number:09d}.json", json.dumps(asdict(Holder.this_process("tune"))))

    thread = once_it_works(tmp_path, take)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (
            pytest.raises(InputError, match=r"was taken by another process .*: `intentrec tune`"),
            run_lock(run, "train", 0.2),
        ):
            work(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
