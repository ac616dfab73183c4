"""What the nodes of a Ray cluster offer to Prometheus of a run."""

from __future__ import annotations

import re
import urllib.request
from http.client import HTTPException

from cluster.watching import METRICS, PREFIX

EXPORTED = {f"ray_{PREFIX}{name}" for name in METRICS}
FIRST = {"checkpoint_seconds", "checkpoint_copy_seconds", "checkpoint_timestamp_seconds", "restarts"}
"""The metrics that the first worker alone has."""


def scraped(run: str, model: str) -> dict[str, dict[str, float]]:
    """Of the model's own: name -> rank -> value."""
    import ray

    found: dict[str, dict[str, float]] = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                lines = response.read().decode().splitlines()
        except (OSError, HTTPException):  # a busy node is asked again
            continue
        for line in lines:
            name, _, rest = line.partition("{")
            tags = dict(re.findall(r'(\w+)="(.*?)"', rest))
            if name in EXPORTED and (tags["run"], tags["model"]) == (run, model):
                found.setdefault(name.removeprefix(f"ray_{PREFIX}"), {})[tags["rank"]] = float(line.split()[-1])
    return found


def complete(found: dict[str, dict[str, float]]) -> bool:
    """Whether all metrics of two workers are there, whose training has ended."""
    ranks = {name: {"0"} if name in FIRST else {"0", "1"} for name in METRICS}
    ended = set(found.get("targets_per_second", {}).values()) == {0.0}
    return ended and {name: set(values) for name, values in found.items()} == ranks
