"""The report's charts."""

from __future__ import annotations

import pytest

from evaluation.charts import line_chart, round_ticks, thin
from tests.evaluation.test_report import Page


def test_ticks_are_round_and_cover_the_range() -> None:
    assert round_ticks(0, 1, most=5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_ticks(3, 3) == [3]
    assert round_ticks(-0.013, 0.021) == [-0.01, 0, 0.01, 0.02]


def test_a_long_series_is_thinned_and_keeps_its_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(7 * 240 * 5)]
    thinned = thin(points)
    assert len(thinned) <= 240
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(3, abs=0.05)
    assert thin(points[:9]) == points[:9]
    assert thin([]) == []


def test_one_point_and_a_flat_line_are_drawn() -> None:
    Page(str(line_chart({"a": (0, [(1, 0.0)])}, "epoch", "loss")))
    Page(str(line_chart({"a": (0, [(1, 2.0), (2, 2.0)])}, "epoch", "loss")))
    assert line_chart({"a": (0, [])}, "epoch", "loss") == ""
