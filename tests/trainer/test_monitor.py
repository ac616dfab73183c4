"""What TensorBoard and those who watch are told, against a computation by hand, and what a killed run leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec.config
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from embeddings.workers import Worker
from tests.disk import SmallDisk
from tests.s3 import ObjectStore
from trainer import events, monitor, pace
from trainer.events import Events
from trainer.monitor import Monitor


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/watching.md has it for TensorBoard on an object store."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"use_listings_cache": False})


def reader(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0})


def values(folder: str | Path, tag: str, found: EventAccumulator | None = None) -> list[tuple[int, float]]:
    found = found or reader(folder)
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.mark.usefixtures("alone")
def test_figures_are_those_of_a_computation_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 seconds 1 is waiting for data; 1.5 are busy, of which 0.5 while waiting. Three steps, one without data."""
    clock = SimpleNamespace(now=0.0, busy=0.0)
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    for module in (monitor, pace):
        monkeypatch.setattr(module, "busy_seconds", lambda: clock.busy)
    figures: list[tuple[str, dict[str, float]]] = []
    worker = Worker(watch=lambda model, found: figures.append((model, dict(found))))
    watched = Monitor(str(tmp_path), worker, "deep", nn.Linear(1, 1))
    with watched.waiting_for_data():
        clock.now, clock.busy = 1.0, 0.5
    for tokens, targets in ((300, 6), (100, 2), (0, 0)):
        watched.count(tokens, targets, tokens > 0)
    clock.now, clock.busy = 4.0, 1.5
    assert watched.point(3, 2.5, {"item": 2.0}, 0.5, 1e-3) == 100
    assert figures == [
        ("deep", {"targets_per_second": 2.0, "step_seconds": pytest.approx(4 / 3), "data_wait_ratio": 0.25}),
        ("deep", {"own_seconds": (1 + (1.5 - 0.5)) / 2}),
    ]
    watched.close()
    assert figures[2:] == [("deep", {"targets_per_second": 0.0})]
    expected = {"throughput(tps)": 100, "throughput(targets/s)": 2, "time_metrics/end_to_end(s)": 4 / 3,
                "time_metrics/data_loading(%)": 25, "time_metrics/data_loading_most(%)": 25,
                "time_metrics/data_loading(s)": 1 / 3, "loss_metrics/global_avg_item_loss": 2}  # fmt: skip
    for tag, value in expected.items():
        assert values(tmp_path, tag) == [(3, pytest.approx(value))], tag


KILLED = """
import os, signal, sys
from torch import nn
from embeddings.workers import Worker, single_process
from trainer.monitor import Monitor
import torch
with single_process(torch.device("cpu")):
    monitor = Monitor(sys.argv[1], Worker(), "model", nn.Linear(1, 1))
    for step in range(1, 6):
        monitor.count(10, 1, True)
        monitor.point(step, step / 2, {}, 1.0, 1.0)
    if "://" in sys.argv[1]:
        monitor.events.copying.join()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("remote", "shown"), [(False, [1, 2, 3, 4, 5]), (True, [1])])
def test_a_killed_run_shows_its_last_point_or_on_an_object_store_its_last_copy(
    remote: bool, shown: list[int], tmp_path: Path, s3: ObjectStore
) -> None:
    folder = str(tmp_path)
    if remote:
        s3.make_bucket("killed")
        folder = "s3://killed/tensorboard"
    ended = subprocess.run([sys.executable, "-c", KILLED, folder], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    found = values(folder, "loss_metrics/global_avg_loss")
    assert found[: len(shown)] == [(step, step / 2) for step in shown]


def write(file: Events, *steps: int) -> None:
    for step in steps:
        file.add(lambda writer, step=step: writer.add_scalar("loss", step, step))


def test_an_object_is_copied_each_minute_and_in_parts(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("watched")
    folder = "s3://watched/tensorboard"
    file, live = Events(folder, 0, print), reader(folder)
    written = [(1, 1.0), (2, 2.0)]
    write(file, 1, 2)
    file.flush()
    assert file.copying is not None
    file.copying.join()
    assert values(folder, "loss", live) == written
    write(file, 3)
    file.flush()
    file.copying.join()
    assert values(folder, "loss") == written
    monkeypatch.setattr(events, "COPY_SECONDS", 0)
    monkeypatch.setattr(events, "MOST_BYTES", 1)
    for step in (4, 5):
        write(file, step)
        file.flush()
        file.copying.join()
    write(file, 6)
    file.close()
    for found in (live, reader(folder)):
        assert values(folder, "loss", found) == [(step, step) for step in range(1, 7)]
    assert len(file.copied) == 3
    assert not file.local.exists()


def test_a_storage_that_fails_is_told_once_and_loses_nothing(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.make_bucket("failing")
    folder, said = "s3://failing/tensorboard", []

    def failing(*_: Any) -> None:
        raise OSError("slow down")

    file = Events(folder, 0, said.append)
    with monkeypatch.context() as patch:
        patch.setattr(events, "copy", failing)
        patch.setattr(events, "COPY_SECONDS", 0)
        for step in (1, 2, 3, 4):
            write(file, step)
            file.flush()
            assert file.copying is not None
            file.copying.join()
    assert said == [f"TensorBoard's file is not in {folder}, which is tried again: slow down"]
    file.close()
    assert values(folder, "loss") == [(step, step) for step in (1, 2, 3, 4)]


def test_steps_that_are_taken_again_are_shown_once(tmp_path: Path) -> None:
    """A run is killed after step 4 and goes on from its checkpoint of step 2."""
    for begin, end, offset in ((0, 4, 0), (2, 6, 100)):
        file = Events(str(tmp_path), begin, print)
        for step in range(begin + 1, end + 1):
            file.add(lambda writer, step=step, offset=offset: writer.add_scalar("loss", step + offset, step))
        file.close()
    assert values(tmp_path, "loss") == [(1, 1), (2, 2), *((step, step + 100) for step in (3, 4, 5, 6))]


def test_a_full_disk_is_told_once_and_what_comes_when_there_is_room_is_shown(small_disk: SmallDisk) -> None:
    said: list[str] = []
    folder = str(small_disk.folder / "tensorboard")
    file = Events(folder, 0, said.append)
    write(file, 1)
    file.flush()
    with small_disk.full():
        for _ in range(3):
            file.add(lambda writer: writer.add_text("config", "long" * 9999))
            file.flush()
    time.sleep(1.1)  # no two files are begun within a second
    write(file, 5)
    file.close()
    assert [line for line in said if "No space left" in line] == said
    assert len(said) == 1
    shown = values(folder, "loss")
    assert (shown[0], shown[-1]) == ((1, 1.0), (5, 5.0))
