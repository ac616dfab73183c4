"""Jobs on a Ray cluster of three machines that have nothing in common but their network and an object store.

The head runs the jobs' commands and the two others their workers, as in ray_job.yaml.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import AUTHENTICATION, without_ray
from tests.nodes import Network, finished, why_not, words
from tests.s3 import ObjectStore

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = "--disable-usage-stats --object-store-memory=100000000"
CONFIG = {
    "name": "far",
    "storage": "s3://nodes",
    "extensions": ["own_metric"],
    "simulate": {"users": 150, "items": 60, "days": 20, "processes": 1},
    "data": {"features": [{"name": "action", "intent": True}], "partition_events": 1500},
    "train": {
        "epochs": 10_000,
        "patience": 10_000,
        "checkpoint_steps": 5,
        "reader": {"tokens": 512, "max_length": 30},
        "tables": {"dimension": 16},
    },
    "models": {"sasrec": {"kind": "sasrec"}, "popularity": {"kind": "popularity"}},
    "evaluate": {"filter_seen": False},
    "cluster": {"workers": 2},
}
METRIC = """
from evaluation.metrics import register
register("HR@3", lambda rank: rank <= 3)
"""


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
        found = filesystem.glob("nodes/far/models/sasrec/checkpoints/step-*/complete.json")
        return [json.loads(filesystem.cat(path)) for path in sorted(found)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder, project = tmp_path_factory.mktemp("nodes"), tmp_path_factory.mktemp("project")
    (project / "far.yaml").write_text(yaml.safe_dump(CONFIG))
    (project / "own_metric.py").write_text(METRIC)
    network = Network(folder, ["head", "worker-1", "worker-2"])
    store = ObjectStore(folder / "s3", network.address)
    try:
        store.start()
        store.make_bucket("nodes")
        head, *workers = network.nodes.values()
        for node in network.nodes.values():
            node.environment |= AUTHENTICATION | store.environment | {"OMP_NUM_THREADS": "1"}
        head.run(*words(f"ray start --head --num-cpus=0 --dashboard-host=0.0.0.0 {RAY}"))
        for started in [node.start(*words(f"ray start --address=head:6379 --num-cpus=1 {RAY}")) for node in workers]:
            finished(started)
        yield Cluster(network, store, project)
    finally:
        network.close()
        store.stop()


def test_a_job_is_submitted_listed_followed_cancelled_and_gone_on_with(cluster: Cluster) -> None:
    address, job = ["--address", cluster.dashboard], "raysubmit_first"
    command = ["intentrec", "run", "far.yaml"]
    cluster.run(
        "ray", "job", "submit", *address, "--no-wait", "--submission-id", job, "--working-dir", ".", "--", *command
    )
    following = cluster.start("intentrec", "jobs", "follow", job, *address)
    assert following.stdout is not None
    epochs = (line for line in following.stdout if line.startswith("sasrec epoch 2/"))
    assert next(epochs), "no epoch"
