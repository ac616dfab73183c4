"""A model, a kind of feature, a source and a metric of one's own, each in one file, from the config to the report.

On a cluster they are used in test_several_nodes.py, all but the source, which is read where the command runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from tests.cluster.readme import ROOT

METRIC = "mean reciprocal log rank"
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
""".replace("METRIC", METRIC)


def check(folder: Path, printed: str) -> None:
    """Each of the four is in what the run has left."""
    results = json.loads((folder / "results.json").read_text())
    targets = pl.concat([pl.read_parquet(path) for path in sorted((folder / "targets/ours").glob("*.parquet"))])
    ranks = targets.filter(pl.col("rank") > 0)["rank"].to_numpy()
    assert results["models"]["ours"]["metrics"][METRIC] == pytest.approx(
        (1 / (1 + np.log(ranks))).sum() / targets.height
    )
    assert results["models"]["ours"]["versus"]["intentrec"]["metric"] == METRIC
    assert METRIC in printed
    assert results["data"]["users"] == 60
    assert 0 <= results["models"]["intentrec"]["intents"]["day"] <= 1
    days = pl.read_parquet(folder / "data/vocab/day.parquet")["value"].to_list()
    assert set(days[2:]) == set("0123456")


def run(folder: Path, *options: str, config: str = CONFIG) -> subprocess.CompletedProcess[str]:
    """`intentrec run` in a process of its own: what it registers is not known to other tests."""
    (folder / "own.yaml").write_text(config)
    command = [sys.executable, "-m", "cluster.cli", "run", str(folder / "own.yaml"), f"storage={folder}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_kinds_of_ones_own_in_one_process(tmp_path: Path) -> None:
    done = run(tmp_path, "--no-ray")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "own", done.stdout)


def test_an_extension_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, config=yaml.safe_dump(yaml.safe_load(CONFIG) | {"extensions": ["tests.nowhere"]}))
    assert done.returncode == 2
    assert "extensions: 'tests.nowhere' can not be imported" in done.stderr
