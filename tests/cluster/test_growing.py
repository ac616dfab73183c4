"""A cluster that has no machine for workers, and adds them when it is asked to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import without_ray
from tests.cluster.readme import ROOT
from tests.s3 import free_ports

ROOM = """
import sys
import ray
from cluster.config import ClusterConfig
from cluster.nodes import Room
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.cluster_resources().get("CPU", 0), Room(ClusterConfig(workers={"min": 1, "max": 2})).size())
"""
"""How many CPUs there are at first, and how many workers start."""


@pytest.fixture
def growing() -> Iterator[str]:
    """The address of a Ray head without CPUs, with Ray's autoscaler, whose machines are processes of this one."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    node = {"node_config": {}, "min_workers": 0}
    config: dict[str, Any] = {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "head_node_id": "f" * 56, "gcs_address": address},
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": node | {"resources": {"CPU": 0}, "max_workers": 0},
            "worker": node | {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "max_workers": 2},
        },
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{name}_commands": [] for name in commands}
    config |= {"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
    config |= {"rsync_exclude": [], "rsync_filter": []}
    scaling = Path(folder, "scaling.yaml")
    scaling.write_text(json.dumps(config))
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0"),
        *("--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"),
        *(f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--port={port}"),
        *(f"--autoscaling-config={scaling}", "--object-store-memory=100000000"),
    ]
    env = without_ray({"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled"})
    with Path(folder, "head.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_a_cluster_without_room_for_the_least_is_asked_for_it(growing: str) -> None:
    """`workers: {min: 1, max: 2}` on a cluster that grows on demand: nothing else asks it for a machine."""
    env = without_ray({"INTENTREC_AUTOSCALING": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)})
    done = subprocess.run([sys.executable, "-c", ROOM, growing], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "0 1\n", done.stderr
