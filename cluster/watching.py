"""A worker's figures as Ray's metrics, which every node offers to Prometheus; docs/watching.md has how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "intentrec_"
"""Of the names; in front of it Ray puts its own, `ray_`."""
TAGS = ("run", "model", "rank")
METRICS = {
    "targets_per_second": "Targets that the worker trains on a second; 0 when training has ended",
    "step_seconds": "Seconds of a step, with waiting for data and for other workers",
    "own_seconds": "Seconds of a step that the worker itself waits for data or computes",
    "data_wait_ratio": "The share of the time that the worker waits for data",
    "checkpoint_seconds": "From the begin of the last checkpoint until it was complete",
    "checkpoint_copy_seconds": "How long training waited for the copy of the last checkpoint",
    "checkpoint_timestamp_seconds": "When the last checkpoint was complete, as Unix time; its age is time() minus this",
    "restarts": "How often this run's workers have been started again after a failure",
}
"""The gauges by what a trainer calls them; those of checkpoints and restarts are the first worker's."""


class Metrics:
    """Takes the figures of the worker `rank` of `run`, whose workers were started again `restarts` times."""

    def __init__(self, run: str, rank: int, restarts: int) -> None:
        self.run, self.rank, self.restarts = run, rank, restarts
        self.gauges: dict[str, Any] = {}

    def __call__(self, model: str, figures: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        if self.rank == 0:
            figures = {**figures, "restarts": float(self.restarts)}
        tags = {"run": self.run, "model": model, "rank": str(self.rank)}
        for name, value in figures.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(PREFIX + name, METRICS[name], TAGS)
            self.gauges[name].set(value, tags)
