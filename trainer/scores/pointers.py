"""What a score may know beyond query . row: further candidates of each target's own, each with a logit.

    Q  targets     W  candidates of one, padded     X  rows of any kind

Several may be the same item, and any item may be one, also an item that has no row of the table. Their probabilities
are added to the items' own (`trainer.softmax.Pointed`), so nothing grows with targets times items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ingest.features.feature import PADDING
from trainer.softmax import Pointed


@dataclass(frozen=True)
class Candidates:
    """The candidates one by one, as ranking needs them; padding has item `PADDING` and logit -inf."""

    item_QW: Tensor
    logit_QW: Tensor

    def padded(self, width: int) -> Candidates:
        """The same, `width` of each target."""
        pad = (0, width - self.item_QW.shape[1])
        return Candidates(F.pad(self.item_QW, pad, value=PADDING), F.pad(self.logit_QW, pad, value=-torch.inf))


class _SumExp(torch.autograd.Function):
    """Log-sum-exps over the last dimension, of all logits and of those that hit; -inf where there is none."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
        all_, own = logit.logsumexp(dim=-1), logit.masked_fill(~hit, -torch.inf).logsumexp(dim=-1)
        ctx.save_for_backward(logit, hit, all_, own)
        return all_, own

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logit, hit, *totals = ctx.saved_tensors
        all_, own = (total.masked_fill(total == -torch.inf, 0)[..., None] for total in totals)
        grad_all, grad_own = (gradient[..., None] for gradient in gradients)
        found = (logit - all_).exp_().mul_(grad_all)
        return found.add_((logit - own).exp_().mul_(grad_own).masked_fill_(~hit, 0)), None


class _SumExpOfFew(torch.autograd.Function):
    """The same where few hit, [N] of all: these alone are read. How many there are, a GPU would have to be asked."""

    @staticmethod
    def forward(ctx: Any, logit: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
        logit = logit.contiguous()
        all_, at_N = logit.logsumexp(dim=-1), hit.flatten().nonzero()[:, 0]
        row_N, own_N = at_N // hit.shape[-1], logit.flatten().index_select(0, at_N)
        most_X = all_.new_full((all_.numel(),), -torch.inf).scatter_reduce_(0, row_N, own_N, "amax")
        most_X = most_X.masked_fill_(most_X == -torch.inf, 0)
        sum_X = torch.zeros_like(most_X).index_add_(0, row_N, (own_N - most_X[row_N]).exp_())
        own = sum_X.log_().add_(most_X).view_as(all_)
        ctx.save_for_backward(logit, at_N, row_N, own_N, all_, own)
        return all_, own

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logit, at_N, row_N, own_N, *totals = ctx.saved_tensors
        all_, own = (total.masked_fill(total == -torch.inf, 0) for total in totals)
        grad_all, grad_own = gradients
        found = (logit - all_[..., None]).exp_().mul_(grad_all[..., None])
        few_N = (own_N - own.flatten()[row_N]).exp_().mul_(grad_own.flatten()[row_N])
        found.view(-1).index_add_(0, at_N, few_N)
        return found, None


def sum_exp(logit: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exps over the last dimension of all logits, and of those that `hit`: [X, W] twice -> [X] twice."""
    all_, own = (_SumExp if logit.is_cuda else _SumExpOfFew).apply(logit, hit)
    return all_, own


def joined(parts: list[Pointed]) -> Pointed | None:
    """All candidates together; None without any."""
    if not parts:
        return None
    all_Q, target_Q = (torch.stack(columns) for columns in zip(*((p.all_Q, p.target_Q) for p in parts), strict=True))
    return parts[0] if len(parts) == 1 else Pointed(_log_sum(all_Q), _log_sum(target_Q))


def _log_sum(value_NQ: Tensor) -> Tensor:
    return sum_exp(value_NQ.T, torch.ones_like(value_NQ.T, dtype=torch.bool))[0]
