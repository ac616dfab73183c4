"""The negatives against their own distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.negatives import NegativeSampler
from trainer.train_config import LossConfig

V = 20
COUNTS = np.array([0, 99, *(1 + 300 // (item + 1) for item in range(V - 2))])
SAMPLINGS = ["uniform", "log_uniform", "in_batch", "mixed"]


def sampler(sampling: str, negatives: int = 50, seed: int = 3) -> NegativeSampler:
    config = {"negatives": negatives, "sampling": sampling, "in_batch_share": 0.3}
    return NegativeSampler(LossConfig.model_validate(config), V, seed, COUNTS)


def targets() -> torch.Tensor:
    """Every known item as often as the training data have it, and unknown ones, which nobody draws."""
    known = torch.arange(2, V).repeat_interleave(torch.from_numpy(COUNTS[2:]))
    return torch.cat([known, torch.ones(70, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_negatives_are_drawn_as_often_as_expected(sampling: str) -> None:
    """Chi-square over all items, five standard deviations wide, against the formula and against `log_expected`."""
    steps, rank = 400, torch.arange(V - 2).double()
    uniform, share = torch.full_like(rank, 1 / (V - 2)), torch.from_numpy(COUNTS[2:] / COUNTS[2:].sum())
    probability = {
        "uniform": uniform,
        "log_uniform": ((rank + 2) / (rank + 1)).log() / math.log(V - 1),
        "in_batch": share,
        "mixed": 0.3 * share + 0.7 * uniform,
    }[sampling]
    ours = sampler(sampling, negatives=500)
    drawn = torch.cat([ours.draw(step, targets()) for step in range(steps)])
    assert len(drawn) == 500 * steps
    assert drawn.min() == 2
    assert drawn.max() == V - 1
    expected = probability * 500 * steps
    chi_square = ((drawn.bincount(minlength=V)[2:] - expected) ** 2 / expected).sum().item()
    freedom = V - 3
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    torch.testing.assert_close(ours.log_expected(torch.arange(2, V)), (500 * probability).log())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_item_drawn_several_times_stands_for_all_of_them(sampling: str) -> None:
    """The sum of exp(score - log Q) over the distinct items is that over the draws."""
    ours = sampler(sampling)
    drawn, negatives = ours.draw(7, targets()), ours(7, targets())
    scores = torch.randn(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert negatives.item_N.tolist() == sorted(set(drawn.tolist()))
    assert len(negatives.item_N) < len(drawn)
    expected = (scores[drawn] - ours.log_expected(drawn)).exp().sum()
    torch.testing.assert_close((scores[negatives.item_N] - negatives.log_q_N.double()).exp().sum(), expected,
                               rtol=1e-6, atol=0)  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_negatives_depend_on_seed_step_and_the_set_of_targets_alone(sampling: str) -> None:
    shuffled = targets()[torch.randperm(len(targets()), generator=torch.Generator().manual_seed(0))]
    drawn = sampler(sampling).draw(7, targets())
    assert torch.equal(drawn, sampler(sampling).draw(7, shuffled))
    assert not torch.equal(drawn, sampler(sampling).draw(8, shuffled))
    assert not torch.equal(drawn, sampler(sampling, seed=4).draw(7, shuffled))


def test_in_batch_negatives_are_targets_of_the_batch() -> None:
    batch = torch.tensor([1, 9, 4, 9, 0])
    drawn = sampler("in_batch", negatives=3000).draw(0, batch)
    assert set(drawn.tolist()) == {4, 9}
    assert (drawn == 9).double().mean().item() == pytest.approx(2 / 3, abs=0.05)
    mixed = sampler("mixed", negatives=100).draw(0, torch.tensor([5]))
    assert (mixed == 5).sum() >= 30


@pytest.mark.parametrize(("sampling", "left"), [("in_batch", 0), ("mixed", 35)])
def test_a_batch_without_a_known_target_has_no_in_batch_negatives(sampling: str, left: int) -> None:
    for batch in (torch.ones(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        assert len(sampler(sampling).draw(0, batch)) == left
        assert sampler(sampling)(0, batch).log_q_N.isfinite().all()


def test_what_was_never_counted_and_is_drawn_still_has_a_finite_correction() -> None:
    """A target that comes after unknown items alone is in no count."""
    ours = NegativeSampler(LossConfig(sampling="in_batch"), V, 0, np.where(np.arange(V) == 4, 0, COUNTS))
    assert ours(0, torch.tensor([4, 9])).log_q_N.isfinite().all()


def test_in_batch_negatives_need_the_counts() -> None:
    uncounted = NegativeSampler(LossConfig(sampling="mixed"), V, 0)
    with pytest.raises(ValueError, match=r"loss\.sampling mixed needs the items' counts"):
        uncounted(0, targets())
    assert len(NegativeSampler(LossConfig(sampling="uniform"), V, 0)(0, targets()).item_N)
