"""Workers that hang, are told to leave, are lost and come back, on a real Ray cluster of two nodes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import cluster.nodes
from cluster.cli import main
from cluster.config import Config
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.settings import load_settings
from tests.cluster.conftest import SMALL
from tests.cluster.readme import ROOT
from tests.cluster.two_nodes import NODE, lose_node
from trainer.loop import Trainer

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

DEMO = str(ROOT / "configs" / "demo.yaml")
EPOCHS = 3
LOADS, SAVES = "sasrec: loads the last checkpoint, ", "sasrec: saves step "
CHANGES = [
    *SMALL,
    "models={sasrec: {kind: sasrec}}",
    "extensions=[tests.cluster.recorded]",
    "cluster={workers: {min: 1, max: 2}, hang_seconds: 12, max_failures: 9}",
    f"train.epochs={EPOCHS}",
    f"train.patience={EPOCHS}",
    "train.checkpoint_steps=5",
    "train.reader.tokens=256",
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose data are prepared; what its extension does to training ends here with the test."""
    monkeypatch.setattr(Trainer, "_train_step", Trainer._train_step)
    monkeypatch.setattr(Trainer, "fit", Trainer.fit)
    for words in (["simulate"], ["prepare", "--no-ray"]):
        assert main([words[0], DEMO, *words[1:], *CHANGES, f"storage={tmp_path}"]) == 0
    return tmp_path


def workers_of(nodes: Cluster) -> list[psutil.Process]:
    """The processes of Ray Train's workers on the cluster's nodes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes.list_all_nodes()]
    below = [process for raylet in raylets for process in psutil.Process(raylet).children()]
    return [process for process in below if "RayTrainWorker" in process.cmdline()[0]]


def until(reached: Callable[[], Any], training: Future[int], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        assert not training.done(), "training has ended before its time"
        time.sleep(0.05)


@pytest.mark.ray
def test_workers_leave_hang_are_lost_and_come_and_every_row_of_an_epoch_is_taken_once(
    own: Path, ray_session: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two gets SIGTERM, one hangs while it loads the checkpoint after that, and one while it writes another; one
    is stopped, the node of one is lost, and another node comes."""
    monkeypatch.setattr(cluster.nodes, "SETTLED", 8.0)
    printed, model = "", own / "demo/models/sasrec"

    def told(words: str) -> bool:
        nonlocal printed
        printed += capsys.readouterr().out
        return words in printed

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(main, ["train", DEMO, *CHANGES, f"storage={own}"])
        until(lambda: begun(model, 1), training)
        (model / "hangs-loading").touch()
        workers_of(ray_session)[0].terminate()
        until(lambda: told("got SIGTERM") and told(f"it stands at: {LOADS}") and begun(model, 2), training)
        (model / "hangs-writing").touch()
        until(lambda: told(f"it stands at: {SAVES}") and begun(model, 3), training)
        workers_of(ray_session)[0].suspend()
        until(lambda: told("hangs: it gives no sign of life") and begun(model, 4), training)
        lose_node(ray_session)
        until(lambda: begun(model, 5), training)
        ray_session.add_node(**NODE)
        assert training.result() == 0
    assert told("the workers have saved and left: there is room for 2 workers")
    groups = groups_of(model)
    assert [group[0]["workers"] for group in groups] == [2, 2, 2, 2, 1, 2]
    saved = [{step["step"] for step in group} for group in groups]
    assert not saved[0] & saved[1]
    assert not saved[4] & saved[5]
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
