"""Log-sum-exps of all candidates and of those that are the target, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.scores.pointers import _SumExp, _SumExpOfFew


def plain(logit: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    return logit.logsumexp(-1), logit.masked_fill(~hit, -torch.inf).logsumexp(-1)


@pytest.mark.parametrize("function", [_SumExp, _SumExpOfFew])
@pytest.mark.parametrize("shape", [(40, 7), (5, 6, 9), (0, 4), (3, 0)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("turned", [False, True])
def test_sums_and_gradients_are_those_of_plain_torch(
    function: type[torch.autograd.Function], shape: tuple[int, ...], share: float, turned: bool
) -> None:
    """Also of rows in which nothing hits, of hits that are padding, and of tensors that do not lie in order."""
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(shape, generator=generator, dtype=torch.float64)
    logit[torch.rand(shape, generator=generator) < 0.3] = -torch.inf
    hit = torch.rand(shape, generator=generator) < share
    logit[:1] = torch.randn(logit[:1].shape, generator=generator)
    found = []
    for call in (function.apply, plain):
        ours = (logit.mT.contiguous().mT if turned else logit).clone().requires_grad_()
        sums = call(ours, hit)
        finite = [total.masked_fill(total == -torch.inf, 0) for total in sums]
        (finite[0].sum() + (finite[1] * torch.arange(finite[1].numel()).view_as(finite[1])).sum()).backward()
        assert ours.grad is not None
        found.append((*sums, ours.grad.nan_to_num()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
