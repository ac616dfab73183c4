"""What is laid over a config changes the key that it names, and nothing else; what was made of another is not taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import fingerprints
from cluster.cli import main
from cluster.config import Config, overrides_in
from cluster.stages import Stages
from cluster.tune_results import Kept, Outcome
from cluster.tune_space import check_space
from ingest.errors import InputError
from ingest.settings import load_content, load_settings
from tests.cluster.readme import ROOT
from tests.ingest.sources.test_movielens import LAYOUTS, write_layout
from trainer.progress import Markers


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_override_of_a_model_changes_no_other_one(path: Path) -> None:
    """Configs have anchors, which are there once for YAML's reader."""
    before = load_content(path)
    for name, model in before["models"].items():
        keys = ["train.epochs=77"] * (model["kind"] not in ("markov",)) + ["moments.items=7"]
        changed = load_content(path, [f"models.{name}.{key}" for key in keys])
        assert changed["models"].pop(name) != model
        assert changed["models"] == {other: section for other, section in before["models"].items() if other != name}


def test_a_value_with_an_anchor_is_one_value_for_each_alias(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: n\n")
    words = ["models={a: &a {kind: sasrec, train: {}}, b: *a}", "models.a.train.epochs=3"]
    assert load_content(config, words)["models"]["b"]["train"] == {}


def test_a_key_with_dots_is_reached(tmp_path: Path) -> None:
    """A model's name, as in what tune writes, and a key of tune.space."""
    config, best = tmp_path / "c.yaml", tmp_path / "best.yaml"
    content = {
        "name": "n",
        "data": {"events": "log.parquet"},
        "models": {"v1.2": {"kind": "sasrec"}, "v1": {"kind": "gru"}},
        "tune": {"space": {"train.learning_rate": {"choice": [1, 2]}}},
    }
    config.write_text(yaml.safe_dump(content))
    best.write_text("models: {v1.2: {train: {learning_rate: 0.01}}}\ndata: {until: 2024-01-01}\n")
    words = [*overrides_in(str(best)), "models.v1.layers=2", "tune.space.train.learning_rate={choice: [3, 4]}"]
    found = load_settings(Config, config, words)
    assert found.train_config("v1.2").learning_rate == 0.01
    assert found.models["v1"].model_dump()["layers"] == 2
    assert found.tune is not None
    assert found.tune.space["train.learning_rate"].choice == [3, 4]
    assert found.data.until is not None
    assert found.data.until.year == 2024
    with pytest.raises(InputError, match=r"models\.v1\.train\.metric: takes one of HR@1.*'FOO'"):
        load_settings(Config, config, ["models.v1.train.metric=FOO"])
    with pytest.raises(InputError, match=r"extensions: '\./mine\.py' can not be imported"):
        load_settings(Config, config, ["extensions=[./mine.py]"])


@pytest.mark.parametrize("address", ["foo", "http://127.0.0.1:8265"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    code = f"""
from cluster.config import ClusterConfig
from cluster.launch import ray_cluster
from ingest.errors import InputError
try:
    with ray_cluster(ClusterConfig(address={address!r})):
        pass
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"cluster.address {address}: takes auto, or the address of a Ray cluster" in done.stdout, done.stderr


def test_trained_anew_is_evaluated_anew(shop: Path) -> None:
    """With as many steps, and so checkpoints of the same names."""
    words = ["models={sasrec: {kind: sasrec}}", "train.epochs=1"]
    for verb in ("prepare", "train", "evaluate"):
        assert main([verb, str(shop), *words, "--no-ray"]) == 0
    config = load_settings(Config, shop, words)
    stages = Stages(config, ray=False)
    assert stages._is_done("evaluate")
    before = fingerprints.of_evaluation(config)
    for change in ("train.metric=HR@5", "train.seed=4", "train.reader.max_length=9"):
        assert fingerprints.of_evaluation(load_settings(Config, shop, [*words, change])) != before
    (Path(config.targets_folder) / "complete.json").write_text("{}")
    assert not stages._is_done("evaluate"), "its targets are of another evaluation"
    markers = Markers(config.checkpoints("sasrec"))
    names = markers.complete()
    for path in sorted(Path(config.model_folder("sasrec")).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert main(["train", str(shop), *words, "train.learning_rate=0.1", "--no-ray"]) == 0
    assert markers.complete() == names
    assert fingerprints.of_evaluation(load_settings(Config, shop, [*words, "train.learning_rate=0.1"])) != before


def test_a_log_that_was_being_made_for_another_config_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = [str(ROOT / "configs" / "demo.yaml"), f"storage={tmp_path}", "simulate.items=60", "simulate.days=20"]
    few = [*demo, "simulate.users=20", "simulate.processes=1"]
    assert main(["simulate", *few]) == 0
    made = (tmp_path / "demo" / "log" / "made.json").read_text()
    assert "processes" not in json.loads(made)
    assert main(["simulate", *few, "simulate.processes=2"]) == 0
    assert "is there already" in capsys.readouterr().out

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ingest.sources.simulate.SimulateConfig.make", interrupted)
        assert main(["simulate", *demo, "simulate.users=30"]) == 130
    assert main(["simulate", *few]) == 0
    assert "is there already" not in capsys.readouterr().out
    (tmp_path / "demo" / "log" / "events").rename(tmp_path / "elsewhere")
    assert main(["simulate", *few]) == 0
    assert "is there already" not in capsys.readouterr().out
    assert (tmp_path / "demo" / "log" / "made.json").read_text() == made


def test_the_best_settings_are_of_a_trial_that_did_not_fail(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models={sasrec: {kind: sasrec}}"]
    tune = [*words, "tune={trials: 2, space: {train.learning_rate: {choice: [0.1, 0.2]}}}"]
    assert main(["prepare", str(shop), *words, "--no-ray"]) == 0
    config = load_settings(Config, shop, tune)
    kept = Kept(config)
    for number, status, value in ((0, "finished", 0.1), (1, "failed", 0.9)):
        settings = {"train.learning_rate": 0.2} if number else {}
        kept.add(Outcome(model="sasrec", number=number, settings=settings, status=status, metric="MRR",
                         curve=[(1, value)], reason="", seconds=1.0))  # fmt: skip
    kept.end()
    assert "best validation MRR 0.1000" in capsys.readouterr().out
    Path(config.tune_folder, "results.json").write_text("{")
    with pytest.raises(InputError, match=r"tune/results\.json: is damaged; remove it to tune anew"):
        Kept(config)
    for key, told in (("train.metric", "trials are compared by it"), ("models.sasrec.train.keep", "one checkpoint")):
        other = load_settings(Config, shop, [*words, f"tune={{space: {{{key}: {{choice: [1, 2]}}}}}}"])
        with pytest.raises(InputError, match=told):
            check_space(other)
    with pytest.raises(InputError, match="takes each model once"):
        load_settings(Config, shop, [*tune, "tune.models=[sasrec, sasrec]"])


def test_a_log_is_imported_anew_when_its_files_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not when they were put away, nor a log of before they were kept."""
    source, made = write_layout(tmp_path / "source", LAYOUTS["ml-1m"]), tmp_path / "ml-1m" / "log" / "made.json"
    words = ["import", str(ROOT / "configs" / "ml-1m.yaml"), f"import.source={source}", f"storage={tmp_path}"]

    def there_already() -> bool:
        assert main(words) == 0
        return "is there already" in capsys.readouterr().out

    assert [there_already(), there_already()] == [False, True]
    with (source / "ratings.dat").open("a") as file:
        file.write("1::3::5::978300900\n")
    assert main(words) == 0
    assert "4 events" in capsys.readouterr().out
    source.rename(tmp_path / "away")
    assert there_already()
    source.mkdir()
    kept = json.loads(made.read_text())
    made.write_text(json.dumps({key: value for key, value in kept.items() if key != "made of"}))
    assert there_already()
