"""A worker's figures as Ray's metrics, which every node offers to Prometheus; docs/watching.md has how to read them.

Ray forgets a gauge that was not set for 20 seconds, which is less than there may be between two points of training. So
a thread sets them again, and a figure of its own says how old they are.
"""

from __future__ import annotations

import threading
import time
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
    "figures_timestamp_seconds": "When the worker last gave a figure, as Unix time",
    "checkpoint_seconds": "From the begin of the last checkpoint until it was complete",
    "checkpoint_copy_seconds": "How long training waited for the copy of the last checkpoint",
    "checkpoint_timestamp_seconds": "When the last checkpoint was complete, as Unix time; its age is time() minus this",
    "restarts": "How often this run's workers have been started again after a failure",
}
"""The gauges by what a trainer calls them; those of checkpoints and restarts are the first worker's."""
AGAIN_SECONDS = 5


class Metrics:
    """Takes the figures of the worker `rank` of `run`, whose workers were started again `restarts` times.

    Figures stay until there are newer ones or those of another model, or the process ends.
    """

    def __init__(self, run: str, rank: int, restarts: int) -> None:
        self.run, self.rank, self.restarts = run, rank, restarts
        self.gauges: dict[str, Any] = {}
        self.model: str | None = None
        self.figures: dict[str, float] = {}
        self.lock = threading.Lock()

    def __call__(self, model: str, figures: Mapping[str, float]) -> None:
        with self.lock:
            if self.model is None:
                threading.Thread(target=self._repeat, name="metrics", daemon=True).start()
            if model != self.model:
                self.model, self.figures = model, {"restarts": float(self.restarts)} if self.rank == 0 else {}
            self.figures |= {**figures, "figures_timestamp_seconds": time.time()}
            self._set()

    def _set(self) -> None:
        from ray.util.metrics import Gauge

        tags = {"run": self.run, "model": str(self.model), "rank": str(self.rank)}
        for name, value in self.figures.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(PREFIX + name, METRICS[name], TAGS)
            self.gauges[name].set(value, tags)

    def _repeat(self) -> None:
        while True:
            time.sleep(AGAIN_SECONDS)
            with self.lock:
                self._set()
