"""One Ray cluster, one Ray head that takes jobs and one object store for all tests, and small logs."""

from __future__ import annotations

import datetime
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.cli import main
from ingest.storage import read_text
from tests.cluster.readme import ROOT, SHOP, STAGES
from tests.cluster.two_nodes import two_nodes
from tests.s3 import ObjectStore, free_ports

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

DATA = Path(os.environ.get("INTENTREC_DATA", ROOT.parent / "shared" / "data"))


AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
SMALL = [
    "simulate.users=150",
    "simulate.items=60",
    "simulate.days=20",
    "simulate.processes=2",
    "train.epochs=2",
    "train.log_steps=2",
    "data.row_group_interactions=1000",
    "train.reader.max_length=30",
    "train.tables.dimension=16",
]
"""Laid over configs/demo.yaml: the same run in a minute."""
NICENESS = "RAY_worker_niceness"


def results_of(folder: str | Path) -> dict:
    """What a run's results.json has."""
    return json.loads(read_text(f"{folder}/results.json"))


@pytest.fixture(scope="session")
def ray_session(s3: ObjectStore) -> Iterator[Cluster]:
    """A Ray cluster of two nodes of one CPU each, for the whole session; its workers see the object store."""
    from cluster.config import ClusterConfig
    from cluster.launch import ray_cluster

    with two_nodes() as nodes, ray_cluster(ClusterConfig(workers=2, address=nodes.address)):
        yield nodes


@dataclass(frozen=True)
class Head:
    """A Ray head that takes jobs."""

    dashboard: str
    environment: dict[str, str]
    """For those who submit: with the cluster's token."""


def without_ray(added: dict[str, str]) -> dict[str, str]:
    """This process's environment without Ray's variables, and with those of `added`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name == NICENESS}
    return kept | added


@pytest.fixture(scope="session")
def head(s3: ObjectStore) -> Iterator[Head]:
    """A Ray head in a temporary folder of its own, that asks for a token as Ray does by default."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port, dashboard_port, client, agent_http, agent_grpc = free_ports(5)
    scripts = Path(sys.executable).parent
    command = [
        *(str(scripts / "ray"), "start", "--head", "--block", "--num-cpus=2"),
        *("--include-dashboard=true", "--include-log-monitor=false", "--disable-usage-stats"),
        *(f"--temp-dir={folder}", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent_http}", f"--dashboard-agent-grpc-port={agent_grpc}"),
        f"--object-store-memory={100 * 2**20}",
    ]
    path = f"{scripts}:{os.environ['PATH']}"
    env = without_ray(AUTHENTICATION | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": "", "PATH": path})
    with Path(folder, "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{dashboard_port}/api/version", process, Path(folder, "head.log"))
        yield Head(f"http://127.0.0.1:{dashboard_port}", without_ray(AUTHENTICATION))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # asked to end it takes half a minute; its workers end with it
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, head: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and head.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the Ray head did not start: {log.read_text()[-2000:]}")


def real_data(name: str) -> Path:
    """The folder of a real data set; the test is skipped where it is not there."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set INTENTREC_DATA to a folder with {name}")
    return folder


def shop_log(folder: Path, users: int = 60, items: int = 30, seed: int = 0) -> dict[str, list]:
    """A shop's log with string ids: who looks at a product then puts it into the cart, then buys it."""
    random = np.random.default_rng(seed)
    rows: dict[str, list] = {"customer": [], "sku": [], "at": [], "what": []}
    start = int(datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC).timestamp())
    for user in range(users):
        now = start + int(random.integers(0, 86_400))
        for _ in range(int(random.integers(2, 6))):
            item = int(random.zipf(1.5)) % items
            for what in ("view", "cart", "buy")[: int(random.integers(1, 4))]:
                now += int(random.integers(5, 600))
                for column, value in zip(rows, (f"c{user:03}", f"sku-{item}", now, what), strict=True):
                    rows[column].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), folder / "clicks.parquet")
    departments = ["shoes", "books", "toys"]
    products = {
        "sku": [f"sku-{item}" for item in range(items)],
        "department": [departments[item % 3] for item in range(items)],
        "price": random.uniform(1, 100, items),
    }
    pq.write_table(pa.table(products), folder / "products.parquet")
    return rows


def shop_config(folder: Path) -> Path:
    """The README's config for the shop's log in `folder`."""
    content = yaml.safe_load(SHOP)
    content["storage"] = str(folder / "runs")
    content["data"] |= {"events": f"{folder}/clicks.parquet", "items": f"{folder}/products.parquet"}
    content["train"] = {"epochs": 2, "reader": {"tokens": 512, "max_length": 20}, "tables": {"dimension": 16}}
    config = folder / "shop.yaml"
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The config of a shop whose log has other column names and other intents, and no durations."""
    shop_log(tmp_path)
    return shop_config(tmp_path)


@pytest.fixture(scope="session")
def stages(s3: ObjectStore, ray_session: Cluster) -> str:
    """The README's stage commands in its order, with everything in the object store; the folder of the run.

    What two workers have trained one process evaluates, as a group of workers takes half a minute to start; groups that
    evaluate, too, are in test_readme.py and test_faults.py.
    """
    s3.make_bucket("runs")
    for words in STAGES:
        alone = ["--no-ray"] if words[1] in ("evaluate", "recommend") else []
        assert main([*words[1:], *SMALL, "storage=s3://runs", *alone]) == 0, words
    return "s3://runs/demo"
