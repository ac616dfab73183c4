"""`intentrec tune`: what is drawn and refused, who is stopped, and a whole tuning on Ray that is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from cluster.cli import main
from cluster.config import Config, overrides_in
from cluster.tune_results import Outcome
from cluster.tune_space import check_space, trials_of
from ingest.settings import load_settings
from ingest.storage import exists, list_names, read_text, remove
from tests.cluster.readme import ROOT
from tests.cluster.test_credentials import kept, shows
from tests.cluster.test_inputs import refused
from tests.s3 import ObjectStore
from trainer.progress import Markers

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-3, 1e-1]},
    "train.tables.optimizer": {"choice": ["adagrad", "sgd"]},
    "model.dropout": {"uniform": [0, 0.5]},
    "model.temperature": {"choice": [None, 0.2]},
    "models.sasrec.layers": {"int": [1, 3]},
    "models.sasrec.dropout": {"choice": [0.25]},
}
MODELS = (
    "models={sasrec: {kind: sasrec, train: {learning_rate: 0.02}}, gru: {kind: gru}, popularity: {kind: popularity}}"
)


def with_tune(**changes: Any) -> list[str]:
    return [MODELS, f"tune={json.dumps({'space': SPACE} | changes)}"]


def test_trials_are_drawn_from_the_space_and_more_of_them_change_none(shop: Path) -> None:
    def trials(number: int, **changes: Any) -> list:
        config = load_settings(Config, shop, with_tune(trials=number, **changes))
        return [(trial.name, trial.settings) for trial in trials_of(config)]

    many = trials(200)
    assert [name for name, _ in many[:4]] == ["sasrec-0", "gru-0", "sasrec-1", "gru-1"]
    assert many[0][1] == many[1][1] == {}
    assert trials(200) == many
    assert trials(3) == many[:6]
    assert trials(3, seed=1)[2:] != many[2:6]
    drawn = {model: [settings for name, settings in many[2:] if name.startswith(model)] for model in ("sasrec", "gru")}
    assert {settings["layers"] for settings in drawn["sasrec"]} == {1, 2, 3}
    assert {settings["dropout"] for settings in drawn["sasrec"]} == {0.25}
    assert drawn["gru"][0].keys() == {"train.learning_rate", "train.tables.optimizer", "dropout", "temperature"}
    rates = [settings["train.learning_rate"] for settings in drawn["gru"]]
    assert 1e-3 <= min(rates) < 2e-3 < 5e-2 < max(rates) <= 1e-1
    assert 70 < sum(rate < 1e-2 for rate in rates) < 130  # half of them, in the logarithm
    assert 70 < sum(settings["dropout"] < 0.25 for settings in drawn["gru"]) < 130


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {"train.learning_rat": {"choice": [1]}}}, ["train.learning_rat", "unknown key", "learning_rate"]),
        ({"space": {"train.loss.negatives": {"int": [0, 9]}}}, ["tune.space", "train.loss.negatives = 0", "1"]),
        ({"space": {"train.decay": {"uniform": [0.5, 1.5]}}}, ["train.decay = 1.5", "less than or equal to 1"]),
        ({"space": {"model.heads": {"int": [1, 2]}}}, ["model.heads = 1", "gru", "unknown key", "hidden"]),
        ({"space": {"models.sasrec.heads": {"choice": [2, 3]}}}, ["models.sasrec.heads = 3", "dimension"]),
        ({"space": {"models.gru4.layers": {"int": [1, 2]}}}, ["models.gru4.layers", "sasrec, gru"]),
        ({"space": {"data.title": {"choice": ["x"]}}}, ["data.title", "models.<name>.<key>"]),
        ({"space": {"model.dropout": {"uniform": [0.5, 0.1]}}}, ["tune.space.model.dropout.uniform", "[0.5, 0.1]"]),
        ({"space": {"model.dropout": {"log_uniform": [0, 1]}}}, ["model.dropout.log_uniform[0]", "greater than 0"]),
        ({"space": {"model.dropout": {"uniform": [0, 1], "int": [0, 1]}}}, ["model.dropout", "takes one of choice"]),
        ({"space": {}}, ["tune.space"]),
        ({"models": ["popularity"]}, ["tune.models", "sasrec, gru", "'popularity'"]),
        ({"trial": 3}, ["unknown key 'tune.trial'", "trials"]),
    ],
)
def test_a_space_that_no_model_can_have_is_refused_by_its_key(
    changes: dict[str, Any], words: list[str], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made."""
    assert main(["tune", str(shop), *with_tune(**changes)]) == 2
    refused(capsys, *words)
    assert not (shop.parent / "runs" / "shop" / "data").exists()


def test_the_shipped_space_and_that_of_the_docs_fit_the_models() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "tuning.md").read_text(), re.MULTILINE | re.DOTALL)
    shipped = ROOT / "configs" / "ml-100k.yaml"
    for overrides in ([], [f"tune={json.dumps(yaml.safe_load(block)['tune'])}"]):
        config = load_settings(Config, shipped, overrides)
        check_space(config)
        assert len(trials_of(config)) == 16


def test_a_config_without_the_section_is_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(shop)]) == 2
    refused(capsys, "tune", "no such section")


def test_trials_are_stopped_where_others_of_their_model_are_better_but_the_first(shop: Path) -> None:
    """With one of every two, at the first epoch. One that ended before counts, too."""
    from cluster.tune_watch import OneForEachModel

    config = load_settings(Config, shop, with_tune(epochs=4, grace=1, reduction=2))
    ended = [
        Outcome(model=m, number=1, settings={}, status="stopped", metric="MRR", curve=[(1, 0.5), (2, 0.6)], seconds=1.0)
        for m in ("gru", "lstm")
    ]
    scheduler = OneForEachModel(config, ended)

    def first_epoch(model: str, number: int, value: float) -> str:
        given = {"model": model, "number": number, "settings": {}}
        trial = SimpleNamespace(trial_id=f"{model}-{number}", config={"trial": given})
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"epoch": 1, "value": value})

    assert first_epoch("sasrec", 1, 0.1) == "CONTINUE"  # gru's are no measure
    assert first_epoch("sasrec", 2, 0.05) == "STOP"
    assert first_epoch("sasrec", 0, 0.01) == "CONTINUE"
    assert first_epoch("sasrec", 3, 0.2) == "CONTINUE"
    assert first_epoch("gru", 2, 0.4) == "STOP"
    assert first_epoch("gru", 3, 0.55) == "CONTINUE"


def test_a_trial_goes_on_from_its_checkpoint_and_reports_what_was_before_it_again(shop: Path) -> None:
    """Stopped at its third report, of five."""
    from cluster.tune_trial import train_trial
    from tests.small import Stopped, one_process, watched

    overrides = ["train.epochs=5", *with_tune(trials=2)]
    assert main(["prepare", str(shop), *overrides, "--no-ray"]) == 0
    config = load_settings(Config, shop, overrides)
    trial = trials_of(config)[2]
    assert trial.settings

    def run(folder: str, until: int = 9) -> tuple[list[dict[str, Any]], int]:
        reports: list[dict[str, Any]] = []

        def report(found: dict[str, Any]) -> None:
            reports.append(found)
            if len(reports) == until:
                raise Stopped

        with watched() as taken, suppress(Stopped):
            train_trial(config, trial, torch.device("cpu"), str(shop.parent / folder), report)
        return [{key: value for key, value in each.items() if key != "seconds"} for each in reports], len(taken)

    with one_process():
        whole, steps = run("undisturbed")
        assert [(report["epoch"], report["ended"]) for report in whole] == [(n, n == 5) for n in range(1, 6)]
        before, _ = run("stopped", until=3)
        after, rest = run("stopped")
    assert before == whole[:3]
    assert after == whole
    assert rest < steps


@pytest.mark.ray
def test_an_interrupted_tuning_goes_on_and_has_trained_as_train_does(
    shop: Path, s3: ObjectStore, ray_session: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the object store, with two trials at a time and without a test split, which no trial may open."""
    s3.make_bucket("tuned")
    folder = "s3://tuned/shop"
    words = [str(shop), "train.epochs=4", *with_tune(trials=2, grace=1, reduction=2)]
    for storage in ("s3://tuned", str(tmp_path / "alone")):
        assert main(["prepare", *words, f"storage={storage}"]) == 0
    assert list_names(f"{folder}/data/test")
    remove(f"{folder}/data/test")

    results, found = f"{folder}/tune/results.json", []

    def interrupt() -> None:
        while not exists(results):
            time.sleep(0.1)
        found.extend(json.loads(read_text(results))["trials"])
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    tune = ["tune", *words, "storage=s3://tuned"]
    assert main(tune) == 130
    assert found
    ended = len(json.loads(read_text(results))["trials"])
    assert ended < 4

    assert main(tune) == 0
    assert f"tune: {4 - ended} trials, {ended} have ended before" in capsys.readouterr().out
    content = json.loads(read_text(results))
    trials = {(trial["model"], trial["number"]): trial for trial in content["trials"]}
    assert trials.keys() == {(model, number) for model in ("sasrec", "gru") for number in (0, 1)}
    assert [trials[trial["model"], trial["number"]] for trial in found] == found
    assert all(trial["status"] in ("finished", "stopped") and trial["curve"] for trial in trials.values())
    left = {name.partition("/tune/")[2] for name in kept(folder) if "/tune/" in name}
    assert left - {""} == {"results.json", "best.yaml"}  # the store shows the folder itself

    assert main(["train", *words, f"storage={tmp_path / 'alone'}", "--no-ray"]) == 0
    for model in ("sasrec", "gru"):
        markers = Markers(str(tmp_path / "alone" / "shop" / "models" / model / "checkpoints"))
        curve = markers.progress(markers.complete()[-1]).validation_curve
        assert trials[model, 0]["curve"] == [list(point) for point in curve]
        assert trials[model, 0]["status"] == "finished"

    best = load_settings(Config, shop, [*words[1:], *overrides_in(f"{folder}/tune/best.yaml")])
    for model in ("sasrec", "gru"):
        both = [trials[model, number] for number in (0, 1)]
        chosen = max(both, key=lambda trial: max(value for _, value in trial["curve"]))
        rate = chosen["settings"].get("train.learning_rate", {"sasrec": 0.02, "gru": 1e-3}[model])
        assert best.train_config(model).learning_rate == rate

    assert main(tune) == 0
    assert "tune: 0 trials, 4 have ended before" in capsys.readouterr().out
    assert json.loads(read_text(results)) == content
    assert main([*tune, "train.clip_norm=3"]) == 2
    refused(capsys, "s3://tuned/shop/tune", "clip_norm = 1.0", "the config has 3.0")

    logs = Path(ray_session.head_node.get_logs_dir_path())
    files = kept(folder) | {str(file): file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    assert shows(files, s3) == []
