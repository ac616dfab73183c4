"""The main job from the command line: simulated log to report, on Ray with two workers and in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import main
from tests.cluster.conftest import ROOT, SMALL, real_data

DEMO = str(ROOT / "configs" / "demo.yaml")


def results_of(storage: Path, name: str) -> dict:
    return json.loads((storage / name / "results.json").read_text())


@pytest.fixture(scope="module")
def demo(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    assert main(["run", DEMO, *SMALL, f"storage={storage}"]) == 0
    return storage


@pytest.mark.ray
def test_run_goes_from_a_simulated_log_to_results_and_report(demo: Path) -> None:
    results = results_of(demo, "demo")
    assert list(results["models"]) == ["intentrec", "deep", "sasrec", "markov", "popularity"]
    assert results["protocol"]["targets"] == results["data"]["users"]
    for model in results["models"].values():
        assert 0 < model["metrics"]["MRR"] <= 1
        assert model["metrics"]["HR@1"] <= model["metrics"]["HR@20"]
    assert set(results["models"]["intentrec"]["intents"]) == {"action", "genres", "content_type", "release_age"}
    assert sum(results["models"]["intentrec"]["attention"].values()) == pytest.approx(1, abs=1e-4)
    assert set(results["models"]["intentrec"]["versus"]) == {"deep", "sasrec", "markov", "popularity"}
    assert len(results["example"]["top_items"]) == 10
    page = (demo / "demo" / "report" / "index.html").read_text()
    assert "intentrec" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.ray
def test_tensorboard_shows_training_validation_intents_and_the_plan(demo: Path) -> None:
    events = EventAccumulator(str(demo / "demo" / "models" / "intentrec" / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "loss_metrics/global_avg_loss",
        "grad_norm",
        "throughput(tps)",
        "time_metrics/data_loading(%)",
        "lr",
    } <= scalars
    assert {"validation_metrics/MRR", "validation_metrics/intent_accuracy/genres", "intent_attention/action"} <= scalars
    assert "row_wise" in events.Tensors("plan/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.ray
def test_what_is_done_is_not_done_again(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "demo" / "results.json").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (demo / "demo" / "data").rglob("*.parquet")}
    assert main(["run", DEMO, *SMALL, f"storage={demo}"]) == 0
    assert (demo / "demo" / "results.json").read_bytes() == before
    assert stamps == {path: path.stat().st_mtime_ns for path in (demo / "demo" / "data").rglob("*.parquet")}
    assert "is there already" in capsys.readouterr().out


@pytest.mark.ray
def test_train_goes_on_from_the_last_checkpoint_on_another_number_of_workers(demo: Path) -> None:
    more = [*SMALL, "train.epochs=3", f"storage={demo}"]
    assert main(["train", DEMO, *more, "--no-ray"]) == 0
    markers = sorted((demo / "demo" / "models" / "sasrec" / "checkpoints").glob("*/complete.json"))
    progress = json.loads(markers[-1].read_text())["progress"]
    assert [epoch for epoch, _ in progress["validation_curve"]] == [1, 2, 3]


@pytest.mark.ray
def test_a_shop_log_trains_from_its_config_alone(shop: Path, ray_session: None) -> None:
    assert main(["run", str(shop)]) == 0
    results = results_of(shop.parent / "runs", "shop")
    assert set(results["models"]["intentrec"]["intents"]) == {"step", "category"}
    assert results["example"]["user"].startswith("c")
    assert {row["features"]["step"] for row in results["example"]["history"]} <= {"view", "cart", "buy"}


@pytest.mark.ray
def test_a_refusal_inside_a_worker_is_one_sentence(
    shop: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(shop)]) == 0
    part = next((shop.parent / "runs" / "shop" / "data" / "train").glob("*.parquet"))
    content = bytearray(part.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 64] = bytes(64)
    part.write_bytes(content)
    assert main(["train", str(shop)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("intentrec: ")
    assert part.name in error
    assert "row group 0" in error


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ("retailrocket", ["events.parquet"]),
        ("kuairand", ["events.parquet", "items.parquet"]),
        ("ml-100k", ["interactions.parquet", "items.parquet"]),
        ("ml-1m", ["interactions.parquet", "items.parquet"]),
    ],
)
def test_shipped_configs_run_on_real_data(config: str, files: list[str], tmp_path: Path) -> None:
    folder = real_data(config)
    source = (
        [f"import.source={folder}"]
        if config.startswith("ml-")
        else [f"data.{name.split('.')[0]}={folder / name}" for name in files]
    )
    quick = ["train.epochs=1", "train.tables.dimension=16", "train.reader.max_length=10", "train.reader.windows=false"]
    overrides = [
        *source,
        *quick,
        "train.loss={kind: sampled, negatives: 64}",
        f"storage={tmp_path}",
        "evaluate.resamples=200",
    ]
    assert main(["run", str(ROOT / "configs" / f"{config}.yaml"), *overrides, "--no-ray"]) == 0
    assert results_of(tmp_path, config)["models"]["intentrec"]["metrics"]["HR@20"] > 0
