"""Figures of training as Prometheus gets them from Ray, the Grafana dashboard, and the lines of the job's log."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cluster import watching
from cluster.cli import main
from cluster.config import Config
from cluster.launch import run_on_workers
from cluster.watching import METRICS, PREFIX, TAGS
from ingest.settings import load_settings
from tests.cluster.readme import ROOT
from tests.cluster.watched import LIMIT

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

EXPORTED = {f"ray_{PREFIX}{name}" for name in METRICS}
FIRST = {"checkpoint_seconds", "checkpoint_copy_seconds", "checkpoint_timestamp_seconds", "restarts"}
"""The metrics that the first worker alone has."""
NAME = re.compile(r"\bray_intentrec_\w+")


def strings(content: Any) -> Iterator[str]:
    """Every string inside of JSON."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from strings(value)


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for expression in expressions for name in NAME.findall(expression)} == EXPORTED
    assert {name for text in strings(dashboard) for name in NAME.findall(text)} == EXPORTED
    used = {
        tag for text in expressions for tags in re.findall(r"\{(.*?)\}", text) for tag in re.findall(r"(\w+)=", tags)
    }
    used |= {tag for text in strings(dashboard) for tag in re.findall(r"\{\{(\w+)\}\}", text)}
    assert used == set(TAGS)
    assert all(text.count("(") == text.count(")") for text in expressions)


def test_the_docs_have_all_metrics() -> None:
    assert set(NAME.findall((ROOT / "docs" / "watching.md").read_text())) == EXPORTED


class FakeGauge:
    """Notes what was set, and says when it is set for the third time."""

    calls: list[tuple[str, float, dict[str, str]]] = []
    thrice = threading.Event()

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        self.name, self.tags = name, tags
        self.times = 0

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags)
        self.calls.append((self.name, value, tags))
        self.times += 1
        if self.times == 3:
            self.thrice.set()


def test_figures_are_repeated_until_another_model_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", FakeGauge)
    monkeypatch.setattr(watching, "AGAIN_SECONDS", 0.01)
    metrics = watching.Metrics("demo", 0, restarts=2)
    metrics("deep", {"step_seconds": 0.5})
    assert FakeGauge.thrice.wait(60)
    tags = {"run": "demo", "model": "deep", "rank": "0"}
    assert FakeGauge.calls.count(("intentrec_step_seconds", 0.5, tags)) >= 2
    assert ("intentrec_restarts", 2.0, tags) in FakeGauge.calls
    metrics("sasrec", {"own_seconds": 0.25})
    with metrics.lock:
        FakeGauge.calls.clear()
        metrics._set()
        names = {(name, tags["model"]) for name, _, tags in FakeGauge.calls}
    figures = ("own_seconds", "figures_timestamp_seconds", "restarts")
    assert names == {(f"intentrec_{name}", "sasrec") for name in figures}


def scraped() -> dict[str, dict[str, float]]:
    """What the nodes of the cluster offer to Prometheus of ours: name -> rank -> value."""
    import ray

    found: dict[str, dict[str, float]] = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                lines = response.read().decode().splitlines()
        except OSError:  # a busy node is asked again
            continue
        for line in lines:
            name, _, rest = line.partition("{")
            tags = dict(re.findall(r'(\w+)="(.*?)"', rest))
            if name in EXPORTED and (tags["run"], tags["model"]) == ("shop", "sasrec"):
                found.setdefault(name.removeprefix(f"ray_{PREFIX}"), {})[tags["rank"]] = float(line.split()[-1])
    return found


def complete(found: dict[str, dict[str, float]]) -> bool:
    """Whether all metrics of two workers are there, whose training has ended."""
    ranks = {name: {"0"} if name in FIRST else {"0", "1"} for name in METRICS}
    ended = set(found.get("targets_per_second", {}).values()) == {0.0}
    return ended and {name: set(values) for name, values in found.items()} == ranks


@pytest.mark.ray
def test_prometheus_gets_the_figures_of_every_worker(
    shop: Path, ray_session: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers that have failed once and train a model of the shop's; an epoch is a line on the driver."""
    changes = ["data.row_group_interactions=40", "train.log_steps=1", "cluster.workers=2"]  # each worker has data
    assert main(["prepare", str(shop), *changes]) == 0
    config = load_settings(Config, str(shop), changes)
    stop = tmp_path / "stop"
    arguments = {"config": config.model_dump(mode="json", by_alias=True), "failed": str(tmp_path / "failed")}
    began = time.time()
    with ThreadPoolExecutor(1) as pool:
        work = "tests.cluster.watched:train", arguments | {"stop": str(stop)}
        training = pool.submit(run_on_workers, *work, config.cluster, config.storage, config.name)
        deadline, found = time.monotonic() + LIMIT, scraped()
        try:
            while not complete(found) and not training.done() and time.monotonic() < deadline:
                time.sleep(1)
                found = scraped()
        finally:
            stop.touch()
        assert training.result()
    assert complete(found), found
    assert set(found["restarts"]) == {"0"}
    assert found["restarts"]["0"] >= 1  # a loaded machine may lose a worker by itself
    assert began < found["checkpoint_timestamp_seconds"]["0"] <= time.time()
    for rank in ("0", "1"):
        assert found["own_seconds"][rank] > 0
        assert found["step_seconds"][rank] > 0
        assert 0 <= found["data_wait_ratio"][rank] <= 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sasrec epoch ")]
    assert [line.split(":")[0] for line in lines] == ["sasrec epoch 1/2", "sasrec epoch 2/2"]
