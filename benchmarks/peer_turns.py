"""How a peer's driver takes turns with the others: it trains when told so, and says what that took.

It runs in the peers' own environment, so it imports nothing of the project. On stdin comes a line of JSON for each
turn: {"steps": n}, or {"steps": null} for what is left of the epoch. On stdout goes one for the start and for each
turn. The clock runs from the line's arrival to the end of the turn's last step: reading, collating, forward, backward
and optimizer, but no start, no preparation and no validation. The first `WARM_UP` steps of a process count for nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

WARM_UP = 3


class Turns:
    """The parent's lines in, the turns' figures out; whatever else the peer prints goes to stderr."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.steps = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Turns:
        return self

    def ready(self, **facts: Any) -> None:
        """All is prepared: say so, and wait for the first turn."""
        self._send(facts)
        self._wait()

    def step(self, targets: int, last: bool) -> None:
        """One training step over `targets` real targets is through; `last`: it was the epoch's last."""
        self.steps += 1
        self.targets += targets
        if self.steps <= WARM_UP:
            self.targets, self.began = 0, time.perf_counter()
        self.left = None if self.left is None else self.left - 1
        self.seconds = time.perf_counter() - self.began
        if self.left == 0 and not last:
            self._send({"seconds": self.seconds, "targets": self.targets})
            self._wait()

    def epoch(self, losses: dict[str, float]) -> None:
        """An epoch is through, with these validation losses by user."""
        self._send({"seconds": self.seconds, "targets": self.targets, "losses": losses})
        self._wait()

    def _send(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.out, flush=True)

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left = json.loads(line)["steps"]
        self.targets, self.seconds, self.began = 0, 0.0, time.perf_counter()
