"""Workers that hang, are told to leave, are lost and come back, on a real Ray cluster of two nodes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from cluster.cli import main
from cluster.config import Config
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.settings import load_settings
from tests.cluster.conftest import SMALL
from tests.cluster.readme import ROOT
from tests.cluster.two_nodes import NODE, lose_node, two_nodes

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

DEMO = str(ROOT / "configs" / "demo.yaml")
EPOCHS = 3
LOADS, SAVES = "sasrec: loads the last checkpoint, ", "sasrec: saves step "
CHANGES = [
    *SMALL,
    "models={sasrec: {kind: sasrec}}",
    "recommend=null",
    "cluster={workers: {min: 1, max: 2}, hang_seconds: 12, max_failures: 9}",
    f"train.epochs={EPOCHS}",
    f"train.patience={EPOCHS}",
    "train.checkpoint_steps=5",
    "train.reader.tokens=256",
]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of a run whose data are prepared."""
    for words in (["simulate"], ["prepare", "--no-ray"]):
        assert main([words[0], DEMO, *words[1:], *CHANGES, f"storage={tmp_path}"]) == 0
    return tmp_path


def workers_of(nodes: Cluster) -> list[psutil.Process]:
    """The processes of Ray Train's workers on the cluster's nodes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes.list_all_nodes()]
    below = [process for raylet in raylets for process in psutil.Process(raylet).children()]
    return [process for process in below if "RayTrainWorker" in process.cmdline()[0]]


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A cluster of their own, so that others' tests can go on beside these."""
    with two_nodes() as nodes:
        yield nodes


def until(reached: Callable[[], Any], training: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, log.read_text()
        assert training.poll() is None, log.read_text()
        time.sleep(0.05)


@pytest.mark.ray
def test_workers_leave_hang_are_lost_and_come_and_every_row_of_an_epoch_is_taken_once(
    own: Path, nodes: Cluster
) -> None:
    """The command gets SIGTERM, and one of two workers; one hangs while it loads the checkpoint after that, one while
    it writes another, and one loops in a step; one is stopped, the node of one is lost, another comes, which is
    drained. One hangs while the test split is evaluated."""
    model, log = own / "demo/models/sasrec", own / "log.txt"

    def goes_on(group: int, *words: str) -> None:
        """Once these are told and that group of workers has begun."""
        until(lambda: all(word in log.read_text() for word in words) and begun(model, group), training, log)

    changes = [*CHANGES, f"storage={own}", f"cluster.address={nodes.address}", "extensions=[tests.cluster.recorded]"]

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cluster.cli", "run", DEMO, *changes]
        with log.open("a") as told:
            return subprocess.Popen(command, stdout=told, stderr=told, cwd=ROOT)

    training = start()
    try:
        goes_on(1)
        training.terminate()
        assert training.wait(30) == 143, log.read_text()
        training = start()
        goes_on(2, "SIGTERM: what runs is saved and ends")
        (model / "hangs-loading").touch()
        workers_of(nodes)[0].terminate()
        goes_on(3, "got SIGTERM", f"it stands at: {LOADS}")
        (model / "hangs-writing").touch()
        goes_on(4, f"it stands at: {SAVES}")
        (model / "loops").touch()
        goes_on(5, "(_recorded)")
        workers_of(nodes)[0].suspend()
        goes_on(6, "hangs: it gives no sign of life")
        lose_node(nodes)
        goes_on(7)
        added = nodes.add_node(**NODE)
        goes_on(8, "the workers have saved and left: there is room for 2 workers")
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=tried", "--deadline-remaining-seconds=60"]
        drain = [str(Path(sys.executable).with_name("ray")), "drain-node", f"--node-id={added.node_id}", *reason]
        subprocess.run([*drain, f"--address={nodes.address}"], check=True)
        goes_on(9, "is drained")
        (own / "demo/hangs-ranking").touch()
        (model / "quick").touch()
        hangs = r"it stands at: evaluate sasrec, batch \d+, in .*\(_ranked\)"
        until(lambda: re.search(hangs, log.read_text()), training, log)
        assert training.wait(300) == 0, log.read_text()
    finally:
        training.kill()
    groups = groups_of(model)
    assert [group[0]["workers"] for group in groups] == [2, 2, 2, 2, 2, 2, 1, 2, 1]
    saved = [{step["step"] for step in group} for group in groups]
    for left in (0, 1, 6, 7):
        assert not saved[left] & saved[left + 1]
    kept = [step for group, after in zip(groups, [*groups[1:], []], strict=True)
            for step in group if step["step"] < min((s["step"] for s in after), default=math.inf)]  # fmt: skip
    for epoch in range(EPOCHS):
        assert sorted(pair for step in kept if step["epoch"] == epoch for pair in step["inputs"]) == whole_epoch(own)
    by_number = {step["step"]: step["workers"] / 2 for step in kept}
    assert kept[-1]["warm"] == sum(by_number.values()) - by_number[max(by_number)]


def begun(model: Path, number: int) -> bool:
    """Whether all workers of that group have taken a step."""
    groups = groups_of(model)
    return len(groups) == number and len({step["pid"] for step in groups[-1]}) == groups[-1][0]["workers"]


def groups_of(model: Path) -> list[list[dict[str, Any]]]:
    """The steps of each group of workers, of all its workers, in the order of time."""
    lines = [line for file in model.glob("taken-*.jsonl") for line in file.read_text().splitlines(keepends=True)]
    found: list[list[dict[str, Any]]] = []
    for step in sorted((json.loads(line) for line in lines if line.endswith("\n")), key=lambda step: step["at"]):
        known = {before["pid"] for before in found[-1]} if found else set()
        if not found or (step["pid"] not in known and len(known) == found[-1][0]["workers"]):
            found.append([])
        found[-1].append(step)
    return found


def whole_epoch(own: Path) -> list[list[int]]:
    """Time and item of each input of an epoch, as one reader has them."""
    config = load_settings(Config, DEMO, [*CHANGES, f"storage={own}"])
    manifest = load_manifest(config.data_folder)
    items = load_items(config.data_folder, manifest, False)
    reader = Reader(config.data_folder, manifest, items, "train", config.train.reader, rank=0, workers=1, seed=0)
    batches = [batch for batch, _ in reader.epoch(0)]
    return sorted([*pair] for b in batches for pair in zip(b.time_T.tolist(), b.item_T.tolist(), strict=True))
