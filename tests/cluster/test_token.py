"""The Ray that a command starts on its own machine lets nobody in who has not its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.readme import ROOT

STARTS = """
import sys
from cluster.config import ClusterConfig
from cluster.launch import ray_cluster
with ray_cluster(ClusterConfig(workers=1)):
    import psutil, ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    children = psutil.Process().children(recursive=True)
    heads = [each for each in children if "dashboard/dashboard.py" in " ".join(each.cmdline())]
    print([each.laddr for head in heads for each in head.net_connections() if each.status == "LISTEN"], flush=True)
    sys.stdin.read()
"""
ASKS = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_cpus=0)(lambda: "runs here").remote()))
"""


@pytest.mark.ray
def test_a_caller_without_the_token_or_with_another_is_refused(tmp_path: Path) -> None:
    """And one that has it runs what it likes, as on any cluster of Ray."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    cluster = subprocess.Popen([sys.executable, "-c", STARTS], env=env, stdin=pipe, stdout=pipe, text=True)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        assert cluster.stdout.readline() == "starting Ray on this machine\n"
        address, listens = cluster.stdout.readline().strip(), cluster.stdout.readline().strip()
        assert listens == "[]", "of the dashboard's process, which counts usage alone"
        token = (tmp_path / ".ray" / "auth_token").read_text()
        callers = {
            "with it": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            "with another": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]},
            "without": {"RAY_AUTH_MODE": "disabled"},
        }
        command = [sys.executable, "-c", ASKS, address]
        asking = {
            who: subprocess.Popen(command, env=env | added, stdout=pipe, stderr=pipe, text=True)
            for who, added in callers.items()
        }
        answers = {who: process.communicate(timeout=200) for who, process in asking.items()}
    finally:
        cluster.stdin.close()
        cluster.wait(60)
    assert answers["with it"][0] == "runs here\n", answers
    for who in ("with another", "without"):
        assert asking[who].returncode == 1
        assert "Failed to connect to Ray cluster" in answers[who][1]
