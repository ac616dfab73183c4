"""Figures of training as they are set, the Grafana dashboard and the docs. Prometheus gets them in test_run.py."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import watching
from cluster.watching import TAGS
from tests.cluster.prometheus import EXPORTED
from tests.cluster.readme import ROOT

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
