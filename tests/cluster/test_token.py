"""The Ray that a command starts on its own machine lets nobody in who has not its token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import without_ray
from tests.cluster.readme import ROOT

STARTS = """
import json
import sys
import urllib.request
from cluster.config import ClusterConfig
from cluster.launch import ray_cluster
with ray_cluster(ClusterConfig(workers=1)):
    import psutil, ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
    children = psutil.Process().children(recursive=True)
    heads = [each for each in children if "dashboard/dashboard.py" in " ".join(each.cmdline())]
    ports = [each.laddr.port for head in heads for each in head.net_connections() if each.status == "LISTEN"]
    asked = [f"http://127.0.0.1:{port}/api/jobs/" for port in ports]
    print(json.dumps([urllib.request.urlopen(url, timeout=30).read().decode() for url in asked]), flush=True)
"""
ASKS = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(num_cpus=0)(lambda: "runs here").remote()))
"""


@pytest.mark.ray
def test_a_caller_without_the_token_or_with_another_is_refused(tmp_path: Path) -> None:
    """And one that has it runs what it likes, as on any cluster of Ray. The dashboard's process, which counts usage,
    gives figures for Prometheus at most where it listens, and has no job API."""
    env = without_ray({"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    pipe = subprocess.PIPE
    cluster = subprocess.Popen([sys.executable, "-c", STARTS], env=env, stdin=pipe, stdout=pipe, text=True)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    try:
        assert cluster.stdout.readline() == "starting Ray on this machine\n"
        address = cluster.stdout.readline().strip()
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
        print(file=cluster.stdin, flush=True)
        heard = json.loads(cluster.stdout.readline())
    finally:
        cluster.stdin.close()
        cluster.wait(60)
    assert all(text.startswith("# HELP ") for text in heard), heard
    assert answers["with it"][0] == "runs here\n", answers
    for who in ("with another", "without"):
        assert asking[who].returncode == 1
        assert "Failed to connect to Ray cluster" in answers[who][1]
