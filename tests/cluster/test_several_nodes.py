"""Jobs on a Ray cluster of three machines that have nothing in common but their network and an object store.

The head runs the jobs' commands and the two others their workers, as in ray_job.yaml.
Kinds of one's own travel with a job.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import IO, Any

import pyarrow.parquet as pq
import pytest
import yaml

from ingest.features.feature import FIRST_VALUE
from tests.cluster.conftest import AUTHENTICATION, NICENESS, without_ray
from tests.cluster.readme import ROOT
from tests.nodes import Network, Node, finished, why_not, words
from tests.s3 import ObjectStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CONFIG: dict[str, Any] = {
    "name": "far",
    "storage": "s3://nodes",
    "extensions": ["own", "own_weekday", "mean_model"],
    "simulate": {"users": 150, "items": 60, "days": 20, "processes": 1},
    "data": {
        "features": [
            {"name": "action", "intent": True},
            {"name": "day", "kind": "weekday", "column": "timestamp", "intent": True},
        ],
        "partition_events": 1500,
    },
    "train": {
        "epochs": 10_000,
        "metric": "HR@3",
        "patience": 10_000,
        "checkpoint_steps": 5,
        "reader": {"tokens": 512, "max_length": 30},
        "tables": {"dimension": 16},
    },
    "models": {"ours": {"kind": "mean"}, "popularity": {"kind": "popularity"}},
    "evaluate": {"filter_seen": False},
    "recommend": {},
    "cluster": {"workers": 2},
}
OPTIONS = "--disable-usage-stats --include-log-monitor=false --object-store-memory=100000000"
"""Of `ray start`, on every machine."""
TRAINED = "ray/session_2*/logs/train/ray-train-app-worker-*.log"
"""Where Ray keeps what a worker said, below /tmp."""
EXTENSION = """
import sys, time
from evaluation.metrics import register
register("HR@3", lambda rank: rank <= 3)
if "cluster.work" in sys.modules:
    from trainer.loop import Trainer
    taken = Trainer._train_step
    def slowly(self, *batch):
        time.sleep(0.1)
        taken(self, *batch)
    Trainer._train_step = slowly
"""
"""A metric of one's own; and steps leave the processors to others."""
KINDS = (ROOT / "tests" / "cluster" / "own_weekday.py", ROOT / "tests" / "trainer" / "mean_model.py")
"""A kind of feature and a model of one's own, which travel with the job."""


@dataclass
class Cluster:
    network: Network
    store: ObjectStore
    project: Path
    """Who submits stands here."""

    @property
    def dashboard(self) -> str:
        return f"http://{self.network.addresses['head']}:8265"

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Begin a command on the machine from which jobs are submitted."""
        program, pipe = Path(sys.executable).with_name(command[0]), subprocess.PIPE
        return subprocess.Popen(
            [str(program), *command[1:]],
            env=without_ray(AUTHENTICATION),
            cwd=self.project,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        return finished(self.start(*command))

    def markers(self) -> list[dict]:
        """The complete checkpoints of the run, the latest last."""
        filesystem = self.store.filesystem()
        found = filesystem.glob("nodes/far/models/ours/checkpoints/step-*/complete.json")
        return [json.loads(filesystem.cat(path)) for path in sorted(found)]


def ray_started(node: Node, options: str) -> None:
    """Ray gives its processes 15 seconds to begin, which on a machine that others use may not be enough."""
    for _ in range(3):
        started = node.start(*words(f"ray start {options} {OPTIONS}"))
        said, _ = started.communicate(timeout=200)
        if started.returncode == 0:
            return
        node.run("ray", "stop", "--force")
    pytest.fail(f"Ray does not start on {node.name}: {said}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder, project = tmp_path_factory.mktemp("nodes"), tmp_path_factory.mktemp("project")
    (project / "far.yaml").write_text(yaml.safe_dump(CONFIG))
    (project / "own.py").write_text(EXTENSION)
    for module in KINDS:
        shutil.copy(module, project)
    network = Network(folder, ["head", "worker-1", "worker-2"])
    store = ObjectStore(folder / "s3", network.address)
    try:
        store.start()
        store.make_bucket("nodes")
        head, *workers = network.nodes.values()
        for node in network.nodes.values():
            node.environment |= AUTHENTICATION | store.environment | {"OMP_NUM_THREADS": "1", NICENESS: "0"}
        head.environment |= {"RAY_health_check_timeout_ms": "3000", "RAY_health_check_period_ms": "2000"}
        ray_started(head, "--head --num-cpus=0 --dashboard-host=0.0.0.0")
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda node: ray_started(node, "--address=head:6379 --num-cpus=1"), workers))
        yield Cluster(network, store, project)
    finally:
        network.close()
        store.stop()


@contextmanager
def lines_of(process: subprocess.Popen[str], seconds: float) -> Iterator[tuple[IO[str], Timer]]:
    """What `process` says, and what ends it after so long; at the end it is ended in any case."""
    assert process.stdout is not None
    late = Timer(seconds, process.kill)
    late.start()
    try:
        yield process.stdout, late
    finally:
        late.cancel()
        process.kill()
        process.wait()


@dataclass
class Running:
    job: str
    following: subprocess.Popen[str]
    """`intentrec jobs follow`, which has shown an epoch."""


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Iterator[Running]:
    """A job that trains and would for hours, submitted by Ray's own command."""
    job, here = "raysubmit_first", ["--working-dir", "."]
    options = ["--address", cluster.dashboard, "--submission-id", job, "--no-wait", *here]
    cluster.run("ray", "job", "submit", *options, "--", "intentrec", "run", "far.yaml")
    following = cluster.start("intentrec", "jobs", "follow", job, "--address", cluster.dashboard)
    said = list[str]()
    with lines_of(following, 400) as (lines, late):
        for line in lines:
            said.append(line)
            if line.startswith("ours epoch 2/"):
                break
        else:
            pytest.fail("".join(said))
        late.cancel()
        yield Running(job, following)


def test_a_job_that_the_cluster_does_not_know_is_named(cluster: Cluster) -> None:
    for action in ("follow", "cancel"):
        asked = cluster.start("intentrec", "jobs", action, "raysubmit_none", "--address", cluster.dashboard)
        said, _ = asked.communicate()
        assert asked.returncode == 2
        assert said.startswith(f"intentrec: job raysubmit_none: {cluster.dashboard} knows no such job")
        assert len(said.splitlines()) == 1


def test_each_worker_trains_on_a_node_of_its_own(cluster: Cluster, running: Running) -> None:
    trained = {name: list(node.folder.glob(TRAINED)) for name, node in cluster.network.nodes.items()}
    assert {name: len(logs) for name, logs in trained.items()} == {"head": 0, "worker-1": 1, "worker-2": 1}


def test_a_running_job_is_listed(cluster: Cluster, running: Running) -> None:
    (line,) = cluster.run("intentrec", "jobs", "list", "--address", cluster.dashboard).splitlines()
    assert re.fullmatch(rf"{running.job}  RUNNING    20\S+ \S+ UTC  0:\d\d:\d\d  intentrec run far.yaml", line)


def test_a_second_job_on_the_run_is_refused_by_name(cluster: Cluster, running: Running) -> None:
    second = cluster.start("intentrec", "submit", "far.yaml", "--address", cluster.dashboard)
    said, _ = second.communicate()
    assert second.returncode == 2
    held = r"intentrec: s3://nodes/far: this run is being made by another process: `intentrec run`, process \d+ on head"
    assert re.search(rf"^{held}, since 20", said, re.MULTILINE), said
    assert re.search(r"^intentrec: job raysubmit_\w+ ended as FAILED", said, re.MULTILINE)
    assert "RUNNING" in cluster.run("intentrec", "jobs", "list", "--address", cluster.dashboard)


def test_a_cancelled_job_is_gone_on_with_and_without_a_machine_that_is_heard_of_no_more(
    cluster: Cluster, running: Running
) -> None:
    """The same command with an end: what the first job has trained is not trained again. Then a worker's cable is
    pulled: no connection ends, and neither Ray nor we can end what runs there. It is the last test."""
    cancelled = cluster.run("intentrec", "jobs", "cancel", running.job, "--address", cluster.dashboard)
    assert cancelled.startswith(f"job {running.job} ended as STOPPED")
    rest, _ = running.following.communicate(timeout=120)
    assert rest.splitlines()[-1].startswith(f"intentrec: job {running.job} ended as STOPPED")
    trained = cluster.markers()[-1]["progress"]["epoch"]
    epochs = trained + 15
    changes = [f"train.epochs={epochs}", "cluster={workers: {min: 1, max: 2}, hang_seconds: 15}"]
    submitted = cluster.start("intentrec", "submit", "far.yaml", *changes, "--address", cluster.dashboard)
    said, cut = list[str](), 0
    with lines_of(submitted, 500) as (lines, _):
        for line in lines:
            said.append(line)
            if not cut and f" epoch {trained + 2}/" in line:
                cluster.network.cut("worker-2")
                cut = len(said)
        told, after = "".join(said), "".join(said[cut:])
        assert submitted.wait() == 0, told
    ended = [int(epoch) for epoch in re.findall(r"^ours epoch (\d+)/.* to validate and save$", told, re.MULTILINE)]
    assert list(dict.fromkeys(ended)) == list(range(trained + 1, epochs + 1)), told
    hangs = r"worker \d \(process \d+ on worker-2\) hangs: it gives no sign of life for 1\d s"
    assert re.search(hangs, after), told
    assert "starting the workers (1, on CPUs)" in after, told
    assert cluster.markers()[-1]["progress"]["epoch"] == epochs
    days = [row["value"] for row in _rows(cluster, "nodes/far/data/vocab/day.parquet")]
    assert set(days[FIRST_VALUE:]) == set("0123456")
    results = json.loads(cluster.store.filesystem().cat("nodes/far/results.json"))
    assert set(results["models"]) == {"ours", "popularity"}
    for model in results["models"].values():
        assert model["metrics"]["HR@1"] <= model["metrics"]["HR@3"] <= model["metrics"]["HR@5"]
    users = {row["user"] for row in _rows(cluster, "nodes/far/recommendations/*.parquet")}
    assert len(users) == results["data"]["users"] == CONFIG["simulate"]["users"]
    first, *_, last = cluster.run("intentrec", "jobs", "list", "--address", cluster.dashboard).splitlines()
    assert " STOPPED " in first
    assert " SUCCEEDED " in last


def _rows(cluster: Cluster, files: str) -> list[dict[str, Any]]:
    filesystem = cluster.store.filesystem()
    return [row for path in filesystem.glob(files) for row in pq.read_table(filesystem.open(path)).to_pylist()]
