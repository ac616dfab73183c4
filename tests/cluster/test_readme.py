"""Every command and config of the README, run as it stands there but on less data; state lies in an object store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.cli import VERBS
from ingest.storage import exists, list_files, open_file
from tests.cluster.conftest import Head
from tests.cluster.readme import COMMANDS, EXTENSION, ROOT, STAGES
from tests.s3 import free_ports

pytestmark = pytest.mark.ray


def test_every_command_is_one_that_is_run_here() -> None:
    others = [words for words in COMMANDS if words not in STAGES]
    assert {" ".join(words[:2]) for words in others} == {
        "make demo",
        "make test",
        "tensorboard --logdir",
        "intentrec submit",
        "intentrec jobs",
        "kubectl create",
    }
    assert {words[1] for words in STAGES} == set(VERBS) - {"submit", "import", "tune"}


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_make_targets_set_up_and_run_what_they_say(target: str) -> None:
    """What they run is this suite and the demo's config, which the other tests run."""
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "--dry-run", "--always-make", target]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    assert "uv pip install" in done.stdout
    last = {"demo": "intentrec run configs/demo.yaml", "test": "pytest --numprocesses=3 --dist=loadscope"}
    assert done.stdout.splitlines()[-1] == f".venv/bin/{last[target]}"
    for tool in ("ruff check .", "ruff format --check .", "mypy"):
        assert (tool in done.stdout) == (target == "test")


def test_the_stages_leave_log_data_checkpoints_results_and_recommendations(stages: str) -> None:
    for path in ("log/made.json", "data/manifest.json", "results.json", "report/index.html"):
        assert exists(f"{stages}/{path}")
    assert exists(f"{stages}/models/intentrec/checkpoints/best.json")
    rows = [row for path in list_files(f"{stages}/recommendations", ".parquet") for row in read(path)]
    with open_file(f"{stages}/data/manifest.json") as file:
        assert len(rows) == json.load(file)["counts"]["users"] == 150
    assert all(len(row["items"]) == 20 for row in rows)


def read(url: str) -> list[dict]:
    with open_file(url) as file:
        return pq.read_table(file).to_pylist()


def test_tensorboard_shows_the_runs(stages: str) -> None:
    (words,) = [words for words in COMMANDS if words[0] == "tensorboard"]
    (port,) = free_ports(1)
    command = [word.replace("runs/demo", stages) for word in words]
    command[0] = str(Path(sys.executable).with_name("tensorboard"))
    server = subprocess.Popen([*command, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        tags = first_answer(f"http://127.0.0.1:{port}/data/plugin/scalars/tags")
    finally:
        server.terminate()
        server.wait()
    assert set(tags) == {f"{model}/tensorboard" for model in ("intentrec", "deep", "paper", "sasrec")}
    assert "validation_metrics/MRR" in tags["intentrec/tensorboard"]


def first_answer(url: str, seconds: float = 90) -> dict:
    """The first answer that has something in it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                found = json.load(response)
            if len(found) == 4:
                return dict(found)
        except OSError:
            pass
        time.sleep(1)
    pytest.fail(f"no answer from {url}")


def test_kinds_of_ones_own_are_used_in_a_run(tmp_path: Path) -> None:
    """The module of the README, found in the current folder: hours are a vocabulary, HR@3 is a result."""
    (tmp_path / "my_kinds.py").write_text(EXTENSION)
    hours, users = [3, 4, 3, 23, 0, 3], range(8)
    rows = [
        {"user_id": user, "item_id": place % 4, "timestamp": 1_700_000_000 + place}
        | {"opened": datetime(2026, 1, 1 + user, hour)}
        for user in users
        for place, hour in enumerate(hours)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    config = {
        "name": "own",
        "extensions": ["my_kinds"],
        "data": {"events": "log.parquet", "time_unit": "s", "features": [{"name": "opened", "kind": "hour"}]},
        "models": {"popularity": {"kind": "popularity"}},
        "evaluate": {"filter_seen": False, "metric": "HR@3"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("intentrec")), "run", "own.yaml", "--no-ray"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    vocabulary = pq.read_table(tmp_path / "runs/own/data/vocab/opened.parquet").to_pydict()
    assert dict(zip(vocabulary["value"][2:], vocabulary["count"][2:], strict=True)) == {"3": 16, "4": 8, "23": 8}
    metrics = json.loads((tmp_path / "runs/own/results.json").read_text())["models"]["popularity"]["metrics"]
    assert metrics["HR@1"] <= metrics["HR@3"] <= metrics["HR@5"] == 1


@pytest.mark.slow
def test_submit_runs_the_cluster_config_as_a_job(stages: str, head: Head) -> None:
    """configs/cluster.yaml whole, with a small log and CPUs in place of its own; prepare's tasks run on the cluster."""
    (words,) = [words for words in COMMANDS if words[:2] == ["intentrec", "submit"]]
    command = [word.replace("http://head:8265", head.dashboard) for word in words]
    bucket = stages.rpartition("/")[0]
    small = [
        *(f"data.events={stages}/log/events", f"data.items={stages}/log/items", f"storage={bucket}"),
        *("cluster.workers=2", "cluster.gpus=false", "cluster.cpus_per_worker=1"),
        *("train.epochs=1", "train.reader={tokens: 1024, max_length: 30, windows: true}"),
        *("train.tables.dimension=16", "train.loss.negatives=64", "evaluate.resamples=200"),
        *("data.split={kind: point_in_time, validation: 3d, test: 3d}", "data.partition_events=1500"),
    ]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:], *small],
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "partitions written: 100%" in done.stdout + done.stderr
    for name in yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())["models"]:
        assert re.search(rf"^{name} .*\d", done.stdout, re.MULTILINE)
    assert exists(f"{bucket}/production/report/index.html")
