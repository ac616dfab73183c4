"""How fast each worker is by itself, and which one the others wait for.

All workers take a step in the same time, because each waits for the slowest one's numbers. So what is compared is what
a worker does itself: it waits for data, and it computes. On a CPU computing is the time that the training thread is on
a processor or waits for one, which leaves out waiting for other workers, as that sleeps. A GPU's host spins instead, so
there it is three times (forward, and twice that for backward) what the network's forward pass takes on the device, in
which nothing is exchanged.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

POINTS = 5
"""Points whose mean is judged."""
MOST = 1.5
"""Times the others' median that a worker may take."""
LEAST = 0.1
"""The part of a step by which a worker has to be slower, so that small numbers name nobody."""


def busy_seconds(thread: int | None = None) -> float:
    """How long this thread, or the one of this process with that native id, has been on a processor or has waited for
    one. Only Linux knows the latter, and tells of others: elsewhere theirs is 0."""
    place = "thread-self" if thread is None else f"self/task/{thread}"
    try:
        file = os.open(f"/proc/{place}/schedstat", os.O_RDONLY)
        try:
            running, queued, _ = os.read(file, 100).split()
        finally:
            os.close(file)
        return (int(running) + int(queued)) * 1e-9
    except (OSError, ValueError):
        return time.thread_time() if thread is None else 0.0


class Computing:
    """The seconds that this worker's thread has computed since `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.began, self.left_out = busy_seconds(), 0.0

    def seconds(self) -> float:
        return busy_seconds() - self.began - self.left_out


class ComputingOnDevice(Computing):
    """The same for a GPU, from the forward passes of `network` in training."""

    def __init__(self, network: nn.Module, event: Callable[[], Any] | None = None) -> None:
        self.event = event or (lambda: torch.cuda.Event(enable_timing=True))
        network.register_forward_pre_hook(lambda module, _: self._mark(module))
        network.register_forward_hook(lambda module, _, __: self._mark(module))
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.events: list[Any] = []

    def _mark(self, module: nn.Module) -> None:
        if module.training:
            event = self.event()
            event.record()
            self.events.append(event)

    def seconds(self) -> float:
        pairs = zip(self.events[::2], self.events[1::2], strict=True)
        return 3 * sum(begin.elapsed_time(end) for begin, end in pairs) / 1000


@dataclass(frozen=True)
class Slowest:
    """The worker that takes longest by itself, a step: seconds, and those of the others' median."""

    rank: int
    seconds: float
    waiting: float
    others: float
    others_waiting: float

    @property
    def ratio(self) -> float:
        return self.seconds / max(self.others, 1e-9)

    @property
    def waits(self) -> bool:
        """Whether data are more than half of what it takes longer."""
        return 2 * (self.waiting - self.others_waiting) > self.seconds - self.others

    def __str__(self) -> str:
        why = (
            f"it waits {self.waiting:.3g} s for data, the others {self.others_waiting:.3g} s"
            if self.waits
            else "it computes longer"
        )
        return (
            f"takes {self.ratio:.1f} times as long a step as the others, {self.seconds:.3g} s of its own against "
            f"{self.others:.3g} s: {why}"
        )


class Drift:
    """Compares the workers by the mean of their last points. Every worker gives it the same, so all find the same."""

    def __init__(self) -> None:
        self.points: deque[tuple[list[float], list[float], float]] = deque(maxlen=POINTS)
        self.slowest: Slowest | None = None
        self.named: set[int] = set()

    def add(self, own: list[float], waiting: list[float], step: float) -> Slowest | None:
        """A point: each worker's seconds of its own and waiting for data, and the seconds of a step.

        Gives the slowest worker where it is too slow and was not given before. A point at which some worker had no data
        counts for nothing.
        """
        if len(own) < 2 or not all(map(math.isfinite, own)):
            return None
        self.points.append((own, waiting, step))
        mean_W = [_mean([point[0][rank] for point in self.points]) for rank in range(len(own))]
        waiting_W = [_mean([point[1][rank] for point in self.points]) for rank in range(len(own))]
        rank = max(range(len(own)), key=mean_W.__getitem__)
        others = [other for other in range(len(own)) if other != rank]
        self.slowest = slowest = Slowest(
            rank,
            mean_W[rank],
            waiting_W[rank],
            median(mean_W[other] for other in others),
            median(waiting_W[other] for other in others),
        )
        few = slowest.seconds - slowest.others < LEAST * _mean([point[2] for point in self.points])
        if len(self.points) < POINTS or slowest.ratio < MOST or few or rank in self.named:
            return None
        self.named.add(rank)
        return slowest


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
