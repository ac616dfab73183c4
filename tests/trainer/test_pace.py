"""Which worker is named as the slowest, and what counts as its own time."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from statistics import mean, median

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.scenarios import TwoWorkers
from trainer.pace import POINTS, ComputingOnDevice, Drift, Slowest, busy_seconds

NONE = [0.0] * 4


def test_the_slowest_is_named_once_with_its_ratio_to_the_median_of_the_others() -> None:
    drift = Drift()
    points = [[1.0, 2.0, 5.0, 3.0], [1.0, 2.0, 4.0, 3.0]] * POINTS
    found = [drift.add(own, [0.0, 0.0, 0.1, 0.0], 5.0) for own in points]
    assert [n for n, slow in enumerate(found) if slow] == [POINTS - 1]
    slow = found[POINTS - 1]
    assert slow is not None
    seconds = mean(own[2] for own in points[:POINTS])
    assert slow == Slowest(2, pytest.approx(seconds), pytest.approx(0.1), 2.0, 0.0)
    assert slow.ratio == pytest.approx(seconds / 2)
    assert str(slow) == "takes 2.3 times as long a step as the others, 4.6 s of its own against 2 s: it computes longer"


@pytest.mark.parametrize(
    ("own", "step"),
    [
        ([1.0, 1.49, 1.0, 1.0], 1.5),  # below 1.5 times
        ([0.001, 0.002, 0.001, 0.001], 0.02),  # twice as much of next to nothing
        ([1.0, 9.0, math.nan, 1.0], 9.0),  # one had no data
        ([1.0], 1.0),
    ],
)
def test_nobody_is_named_without_reason(own: list[float], step: float) -> None:
    drift = Drift()
    assert [drift.add(own, NONE[: len(own)], step) for _ in range(3 * POINTS)] == [None] * (3 * POINTS)


def test_one_long_step_names_nobody_and_a_second_slow_worker_is_named_too() -> None:
    drift = Drift()
    found = [drift.add([1.0, own, 1.0], NONE[:3], 2.0) for own in [1.0] * POINTS + [2.0] + [1.0] * POINTS]
    assert found == [None] * len(found)
    slow = [drift.add([1.0, 1.0, 3.0], [0.0, 0.0, 2.0], 3.0) for _ in range(9)]
    slow += [drift.add([4.0, 1.0, 1.0], NONE[:3], 4.0) for _ in range(9)]
    named = [each for each in slow if each]
    assert [each.rank for each in named] == [2, 0]
    assert [each.waits for each in named] == [True, False]


def test_busy_is_computing_and_not_sleeping() -> None:
    before = busy_seconds()
    time.sleep(0.5)
    slept = busy_seconds()
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass
    assert slept - before < 0.25
    assert busy_seconds() - slept >= 0.19


def test_a_gpu_is_measured_by_the_forward_passes_of_training() -> None:
    class Event:
        clock = itertools.count(100, 5)

        def record(self) -> None:
            self.at = next(self.clock)

        def elapsed_time(self, end: Event) -> float:
            return float(end.at - self.at)

    network = nn.Linear(2, 1)
    computing = ComputingOnDevice(network, Event)
    for training in (True, False, True):
        network.train(training)
        network(torch.zeros(1, 2))
    assert computing.seconds() == pytest.approx(3 * (5 + 5) / 1000)
    computing.reset()
    assert computing.seconds() == 0


@pytest.mark.parametrize(("what", "why"), [("data", "it waits "), ("computing", "it computes longer")])
def test_a_worker_that_drifts_away_says_so_once(what: str, why: str, two_workers: TwoWorkers, shared: Path) -> None:
    first, second = two_workers.result(f"drifting/{what}")
    assert not [line for line in first["said"] if "times as long" in line]
    (line,) = [line for line in second["said"] if "times as long" in line]
    assert line.startswith("model step ")
    assert ": worker 1 on " in line
    assert why in line

    events = EventAccumulator(str(shared / f"drifting-{what}" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    ratio, rank = (events.Scalars(f"time_metrics/slowest_worker({name})")[-1].value for name in ("ratio", "rank"))
    assert ratio > 1.5
    assert rank == 1
    assert median(second["own_seconds"]) > 1.5 * median(first["own_seconds"])


def test_targets_are_those_of_all_workers_and_an_epoch_is_a_line(two_workers: TwoWorkers, shared: Path) -> None:
    """Each point is one step here, so targets a second times its seconds are the targets of both workers' batches."""
    first, second = two_workers.result("drifting/data")
    events = EventAccumulator(str(shared / "drifting-data" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rates, seconds = (
        [event.value for event in events.Scalars(name)]
        for name in ("throughput(targets/s)", "time_metrics/end_to_end(s)")
    )
    targets = [round(rate * taken, 2) for rate, taken in zip(rates, seconds, strict=True)]
    assert targets == pytest.approx([sum(pair) for pair in zip(first["targets"], second["targets"], strict=True)], 1e-3)
    assert sum(second["targets"]) > 0
    epochs = [line for line in first["said"] if " epoch " in line]
    assert [line.split(":")[0] for line in epochs] == ["model epoch 1/2", "model epoch 2/2"]
    assert all("loss " in line and "MRR " in line and "tokens/s" in line for line in epochs)
    assert not [line for line in second["said"] if " epoch " in line]
