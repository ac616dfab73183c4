"""How far a run is: what of it would grow without end."""

from __future__ import annotations

import pytest

from trainer.progress import POINTS, Progress


def test_the_curve_of_a_long_training_stays_small_and_keeps_its_means() -> None:
    progress = Progress()
    for number in range(1, 8 * POINTS + 1):
        progress.step = 10 * number
        progress.add_to_curve(number)
    steps = [step for step, _ in progress.train_curve]
    assert len(steps) <= POINTS
    assert steps == sorted(set(steps))
    assert steps[-1] == 80 * POINTS
    before = 0
    for step, loss in progress.train_curve:  # the mean of 1, 2, 3 ... over the steps since the point before
        assert loss == pytest.approx((before + 10 + step) / 20)
        before = step


def test_the_curve_of_a_short_training_has_every_point() -> None:
    progress = Progress()
    for step in range(1, POINTS + 1):
        progress.step = step
        progress.add_to_curve(1 / step)
    assert progress.train_curve == [(step, 1 / step) for step in range(1, POINTS + 1)]
