"""The main job from the command line: simulated log to report, on Ray with two workers and in one process."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import main
from ingest.storage import open_filesystem, read_text
from tests.cluster.conftest import SMALL, results_of
from tests.cluster.dies_once import LIMIT, MARK, STOP, WRITES
from tests.cluster.prometheus import complete, scraped
from tests.cluster.readme import ROOT
from tests.cluster.two_nodes import NODE, lose_node

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.mark.ray
def test_run_goes_from_a_simulated_log_to_results_and_report(stages: str) -> None:
    results = results_of(stages)
    models = list(yaml.safe_load(read_text(DEMO))["models"])
    assert models[0] == "intentrec"
    assert {"deep", "sasrec", "own-items", "popularity"} < set(models)
    assert list(results["models"]) == models
    assert results["protocol"]["targets"] == results["data"]["users"]
    for model in results["models"].values():
        assert 0 < model["metrics"]["MRR"] <= 1
        assert model["metrics"]["HR@1"] <= model["metrics"]["HR@20"]
    assert set(results["models"]["intentrec"]["intents"]) == {"action", "genres", "content_type", "release_age"}
    assert sum(results["models"]["intentrec"]["attention"].values()) == pytest.approx(1, abs=1e-4)
    bounds = {name for name, model in results["models"].items() if model["oracle"]}
    assert bounds == {"ceiling", "tastes", "filter"}
    assert set(results["models"]["intentrec"]["versus"]) == set(models[1:]) - bounds
    assert len(results["example"]["top_items"]) == 10
    page = read_text(f"{stages}/report/index.html")
    assert "intentrec" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.ray
def test_tensorboard_shows_training_validation_intents_and_the_plan(stages: str) -> None:
    events = EventAccumulator(f"{stages}/models/intentrec/tensorboard")
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "loss_metrics/global_avg_loss",
        "grad_norm",
        "throughput(tps)",
        "time_metrics/data_loading(%)",
        "memory/max_resident(GiB)",
        "lr",
    } <= scalars
    assert {"validation_metrics/MRR", "validation_metrics/intent_accuracy/genres", "intent_attention/action"} <= scalars
    assert "row_wise" in events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "learning_rate" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.ray
def test_what_is_done_is_not_done_again(stages: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No file of the run is touched, and no worker started."""
    filesystem, path = open_filesystem(stages)

    def everything() -> dict[str, object]:
        filesystem.invalidate_cache()
        return {name: (info["size"], info["LastModified"]) for name, info in filesystem.find(path, detail=True).items()}

    before = everything()
    assert main(["run", DEMO, *SMALL, "storage=s3://runs"]) == 0
    changed = {name for name, info in everything().items() if before.get(name) != info}
    changed -= {name for name in changed if name.startswith(f"{path}/.lock/")}
    assert changed <= {f"{path}/results.json", f"{path}/report/index.html"}
    printed = capsys.readouterr().out
    assert "is there already" in printed
    assert "starting the workers" not in printed


@pytest.mark.ray
def test_train_goes_on_from_the_last_checkpoint_on_another_number_of_workers(
    stages: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers' checkpoint in the object store, copied to a local folder. The newest is damaged on its way."""
    filesystem, path = open_filesystem(stages)
    filesystem.get(path, str(tmp_path / "demo"), recursive=True)
    checkpoints = tmp_path / "demo" / "models" / "sasrec" / "checkpoints"
    *_, newest = sorted(checkpoints.glob("step-*"))
    (pieces,) = newest.glob("*-1.bin")
    pieces.write_bytes(pieces.read_bytes()[:-1])
    more = [*SMALL, "train.epochs=3", f"storage={tmp_path}"]
    assert main(["train", DEMO, *more, "--no-ray"]) == 0
    printed = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged and set aside ({newest}/damaged.json): {pieces}: has" in printed
    markers = sorted(checkpoints.glob("*/complete.json"))
    progress = json.loads(markers[-1].read_text())["progress"]
    assert [epoch for epoch, _ in progress["validation_curve"]] == [1, 2, 3]


@pytest.mark.ray
def test_a_node_is_lost_and_training_ends_as_if_nothing_had_been(
    stages: str, ray_session: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed in its first validation, then all processes of one of two nodes while the second checkpoint is
    written, and another node comes in its place. Prometheus gets every worker's figures, and each epoch is a line."""
    filesystem, path = open_filesystem(stages)
    filesystem.get(path, str(tmp_path / "demo"), recursive=True)
    run = tmp_path / "demo"
    models = run / "models"
    undisturbed = _curves(models / "intentrec")
    shutil.rmtree(models)
    alone = {"intentrec": yaml.safe_load(read_text(DEMO))["models"]["intentrec"]}

    def is_shown(figures: dict[str, dict[str, float]]) -> bool:
        """Of the last group, after two that have failed; a loaded machine may lose a worker by itself."""
        return complete(figures) and figures["restarts"]["0"] >= 2

    began = time.time()
    with ThreadPoolExecutor(1) as pool:
        words = ["train", DEMO, *SMALL, f"models={json.dumps(alone)}", f"storage={tmp_path}", "--workers", "2"]
        words.append("extensions=[tests.cluster.dies_once]")
        training = pool.submit(main, words)
        while not (run / WRITES).exists() and not training.done():
            time.sleep(0.05)
        lose_node(ray_session)
        ray_session.add_node(**NODE)
        figures, deadline = scraped("demo", "intentrec"), time.monotonic() + LIMIT
        try:
            while not is_shown(figures) and not training.done() and time.monotonic() < deadline:
                time.sleep(1)
                figures = scraped("demo", "intentrec")
        finally:
            (run / STOP).touch()
        assert training.result() == 0
    assert (run / MARK).exists()
    printed = capsys.readouterr().out
    assert "going on from the last checkpoint, try 2" in printed
    assert "going on from the last checkpoint, try 3" in printed
    assert _curves(models / "intentrec") == undisturbed
    assert is_shown(figures), figures
    assert began < figures["checkpoint_timestamp_seconds"]["0"] <= time.time()
    for rank in ("0", "1"):
        assert figures["own_seconds"][rank] > 0
        assert figures["step_seconds"][rank] > 0
        assert 0 <= figures["data_wait_ratio"][rank] <= 1
    told = [line.split(":")[0] for line in printed.splitlines() if line.startswith("intentrec epoch ")]
    assert list(dict.fromkeys(told)) == ["intentrec epoch 1/2", "intentrec epoch 2/2"]  # the second maybe again


def _curves(model: Path) -> tuple[list, list]:
    """The training loss and the validation metric of a model's last checkpoint."""
    marker = sorted((model / "checkpoints").glob("*/complete.json"))[-1]
    progress = json.loads(marker.read_text())["progress"]
    return progress["train_curve"], progress["validation_curve"]


def test_a_shop_log_trains_from_the_readmes_config_alone(shop: Path) -> None:
    assert main(["run", str(shop), "--no-ray"]) == 0
    results = results_of(shop.parent / "runs" / "shop")
    assert set(results["models"]["intentrec"]["intents"]) == {"step", "category"}
    assert results["example"]["user"].startswith("c")
    assert {row["features"]["step"] for row in results["example"]["history"]} <= {"view", "cart", "buy"}


@pytest.mark.ray
def test_a_refusal_inside_a_worker_is_one_sentence(
    shop: Path, ray_session: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(shop)]) == 0
    part = next((shop.parent / "runs" / "shop" / "data" / "train").glob("*.parquet"))
    content = bytearray(part.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 64] = bytes(64)
    part.write_bytes(content)
    assert main(["train", str(shop), "--workers", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("intentrec: ")
    assert part.name in error
    assert "row group 0" in error
