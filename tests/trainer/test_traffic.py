"""The formulas of a step's bytes against what two processes send through their process group."""

from __future__ import annotations

import pytest

from tests.scenarios import TRAFFIC, TwoWorkers
from tests.traffic import GRADIENTS, ROWS


@pytest.mark.parametrize("name", TRAFFIC)
def test_formulas_equal_what_is_counted(two_workers: TwoWorkers, name: str) -> None:
    ranks = two_workers.result(f"traffic/{name}")
    assert [len(steps) for steps in ranks] == [2, 2]
    for steps in ranks:
        for step in steps:
            assert step["counted"] == step["expected"]
    for first, second in zip(*ranks, strict=True):
        assert first["sent"][ROWS] == second["sent"][GRADIENTS]
        assert second["sent"][ROWS] == first["sent"][GRADIENTS]
