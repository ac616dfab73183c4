"""A model, a kind of feature, a source and a metric of one's own, each in one file, from the config to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import yaml

from cluster.cli import main
from tests.evaluation import log_rank

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

CONFIG = """
name: own
extensions: [tests.trainer.mean_model, tests.cluster.own_weekday, tests.cluster.own_library, tests.evaluation.log_rank]
import: {kind: library, readers: 60}
data:
  features:
    - {name: day, kind: weekday, column: timestamp, intent: true}
    - {name: shelf, of: item}
train: {epochs: 2, metric: METRIC, reader: {tokens: 256, max_length: 20}, tables: {dimension: 8}, loss: {kind: full}}
models:
  ours: {kind: mean}
  intentrec: {kind: intentrec, window: 1d}
evaluate: {metric: METRIC, resamples: 100}
""".replace("METRIC", log_rank.NAME)


def check(folder: Path, printed: str) -> None:
    """Each of the four is in what the run has left."""
    results = json.loads((folder / "results.json").read_text())
    targets = pl.concat([pl.read_parquet(path) for path in sorted((folder / "targets/ours").glob("*.parquet"))])
    ranks = targets.filter(pl.col("rank") > 0)["rank"].to_numpy()
    assert results["models"]["ours"]["metrics"][log_rank.NAME] == pytest.approx(
        (1 / (1 + np.log(ranks))).sum() / targets.height
    )
    assert results["models"]["ours"]["versus"]["intentrec"]["metric"] == log_rank.NAME
    assert log_rank.NAME in printed
    assert results["data"]["users"] == 60
    assert 0 <= results["models"]["intentrec"]["intents"]["day"] <= 1
    days = pl.read_parquet(folder / "data/vocab/day.parquet")["value"].to_list()
    assert set(days[2:]) == set("0123456")


def test_kinds_of_ones_own_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text(CONFIG)
    assert main(["run", str(tmp_path / "own.yaml"), "--no-ray", f"storage={tmp_path}"]) == 0
    check(tmp_path / "own", capsys.readouterr().out)


@pytest.mark.ray
@pytest.mark.slow
def test_kinds_of_ones_own_on_a_cluster(
    ray_session: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(CONFIG)
    assert main(["run", str(tmp_path / "own.yaml"), f"storage={tmp_path}", "train.epochs=1"]) == 0
    check(tmp_path / "own", capsys.readouterr().out)


def test_an_extension_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(CONFIG) | {"extensions": ["tests.nowhere"]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    assert main(["run", str(tmp_path / "own.yaml")]) == 2
    assert "extensions: 'tests.nowhere' can not be imported" in capsys.readouterr().err
