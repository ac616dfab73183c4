"""Sums that stay on the device, against Python's own floats."""

from __future__ import annotations

import math

import torch

from trainer.totals import NotFinite, Totals

CPU = torch.device("cpu")


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_sums_go_on_from_those_given_and_begin_anew_digit_by_digit() -> None:
    before = {"item": 0.1, "genres": 1e9}
    totals, drawn = Totals(CPU, before), torch.rand(5, 2, generator=torch.Generator().manual_seed(1)).double()
    assert totals.read() == (before, 0.0, None)
    for step, values in enumerate(drawn, 1):
        totals.add(step, ["item", "genres"], values, values.sum(), torch.tensor(float(step)))
        for name, value in zip(before, values.tolist(), strict=True):
            before[name] += value
    assert totals.read() == (before, 5.0, None)
    totals.restart()
    assert totals.read()[0] == {}
    totals.add(6, ["item", "genres"], drawn[0], drawn[0].sum(), number(0.5))
    assert totals.read() == (dict(zip(before, drawn[0].tolist(), strict=True)), 0.5, None)


def test_the_first_step_that_is_not_finite_is_kept() -> None:
    totals = Totals(CPU, {})
    for step, (loss, norm) in enumerate([(1.0, 2.0), (3.0, math.inf), (math.nan, 1.0), (1.0, 1.0)], 1):
        totals.add(step, ["item"], number(loss)[None], number(loss), number(norm))
        bad = totals.read()[2]
        assert bad == (None if step == 1 else NotFinite(2, 3.0, math.inf))
