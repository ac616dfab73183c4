"""Losses as sums over targets, so that dividing by the global weight gives the same gradient on any number of workers.

Q  targets     D  dimension     N  negatives, shared by the whole global batch     V  items     C  chunk of targets
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ingest.batch import JaggedTensor
from ingest.schema import FIRST_VALUE
from trainer.config import LossConfig


class NegativeSampler:
    """Draws negatives with replacement from items 2 .. V - 1, the same on every worker for the same step."""

    def __init__(self, config: LossConfig, items: int, seed: int) -> None:
        self.config, self.items, self.seed = config, items, seed
        self.known = items - FIRST_VALUE

    def draw(self, step: int) -> Tensor:
        """The negatives of a step, [N]."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        uniform_N = torch.rand(self.config.negatives, generator=generator, dtype=torch.float64)
        if self.config.sampling == "uniform":
            rank_N = (uniform_N * self.known).long()
        else:
            rank_N = torch.expm1(uniform_N * math.log(self.known + 1)).long()
        return rank_N.clamp(max=self.known - 1) + FIRST_VALUE

    def log_expected(self, index: Tensor) -> Tensor:
        """The logarithm of how often each item is expected among a step's negatives; same shape as `index`."""
        rank = (index - FIRST_VALUE).clamp(min=0).double()
        if self.config.sampling == "uniform":
            probability = torch.full_like(rank, 1 / self.known)
        else:
            probability = torch.log1p(1 / (rank + 1)) / math.log(self.known + 1)
        return (probability * self.config.negatives).log().float()


def sampled_softmax(
    query_QD: Tensor,
    positive_QD: Tensor,
    negative_ND: Tensor,
    target_Q: Tensor,
    negative_N: Tensor,
    log_expected_N: Tensor,
    weight_Q: Tensor,
) -> Tensor:
    """The weighted sum of -log of the target's probability among itself and the negatives; a scalar.

    A negative's score is lowered by the logarithm of its expected count, which makes the denominator an unbiased
    estimate of the full softmax's (Bengio and Senecal 2008); the target is there by itself and takes no correction
    (arXiv 2507.09331). A negative that is the target is masked.
    """
    positive_Q = (query_QD * positive_QD).sum(dim=1)
    logits_QN = query_QD @ negative_ND.T - log_expected_N
    logits_QN = logits_QN.masked_fill(target_Q[:, None] == negative_N, -torch.inf)
    denominator_Q = torch.cat([positive_Q[:, None], logits_QN], dim=1).logsumexp(dim=1)
    return (weight_Q * (denominator_Q - positive_Q)).sum()


def full_softmax(query_QD: Tensor, items_VD: Tensor, target_Q: Tensor, weight_Q: Tensor, chunk: int) -> Tensor:
    """The weighted sum of -log softmax over all items, padding and unknown left out; a scalar.

    Scores live for `chunk` targets at a time: gradients are taken in the forward pass, chunk by chunk.
    """
    loss: Tensor = _FullSoftmax.apply(query_QD, items_VD, target_Q, weight_Q, chunk)
    return loss


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_QD: Tensor, items_VD: Tensor, target_Q: Tensor, weight_Q: Tensor, chunk: int) -> Tensor:
        grad_query_QD, grad_items_VD = torch.zeros_like(query_QD), torch.zeros_like(items_VD)
        loss = query_QD.new_zeros(())
        for begin in range(0, len(query_QD), chunk):
            part = slice(begin, begin + chunk)
            scores_CV = query_QD[part] @ items_VD.T
            scores_CV[:, :FIRST_VALUE] = -torch.inf
            log_total_C = scores_CV.logsumexp(dim=1)
            target_C1, weight_C = target_Q[part, None], weight_Q[part]
            loss += torch.where(weight_C > 0, weight_C * (log_total_C - scores_CV.gather(1, target_C1)[:, 0]), 0).sum()
            probability_CV = scores_CV.sub_(log_total_C[:, None]).exp_()
            probability_CV.scatter_add_(1, target_C1, -torch.ones_like(probability_CV[:, :1]))
            probability_CV *= weight_C[:, None]
            grad_query_QD[part] = probability_CV @ items_VD
            grad_items_VD.addmm_(probability_CV.T, query_QD[part])
        ctx.save_for_backward(grad_query_QD, grad_items_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_query_QD, grad_items_VD = ctx.saved_tensors
        return gradients[0] * grad_query_QD, gradients[0] * grad_items_VD, None, None, None


def intent_loss(logits_QL: Tensor, label: Tensor | JaggedTensor, weight_Q: Tensor) -> Tensor:
    """The weighted sum of one intent's cross-entropy; a scalar.

    Labels are vocabulary indices; unknown ones have no loss. Of several true labels all are positives and nothing is a
    negative: the sum of their -log p divided by their number.
    """
    log_p_QL = F.log_softmax(logits_QL, dim=1)
    if isinstance(label, JaggedTensor):
        row_N = torch.repeat_interleave(label.lengths)
        known_N = (label.values >= FIRST_VALUE).to(logits_QL.dtype)
        log_p_N = log_p_QL[row_N, (label.values - FIRST_VALUE).clamp(min=0)]
        count_Q = torch.zeros_like(weight_Q).index_add_(0, row_N, known_N)
        return -(weight_Q[row_N] * known_N * log_p_N / count_Q[row_N].clamp(min=1)).sum()
    known_Q = label >= FIRST_VALUE
    log_p_Q = log_p_QL.gather(1, (label - FIRST_VALUE).clamp(min=0)[:, None])[:, 0]
    return -(weight_Q * known_Q * log_p_Q).sum()


def intent_hits(logits_QL: Tensor, label: Tensor | JaggedTensor) -> tuple[Tensor, Tensor]:
    """For each target whether the likeliest label is a true one, and whether there is a true one: two bools [Q]."""
    top_Q = logits_QL.argmax(dim=1) + FIRST_VALUE
    if isinstance(label, JaggedTensor):
        row_N = torch.repeat_interleave(label.lengths)
        zero_Q = torch.zeros_like(top_Q)
        hits_Q = zero_Q.index_add(0, row_N, (label.values == top_Q[row_N]).long())
        known_Q = zero_Q.index_add(0, row_N, (label.values >= FIRST_VALUE).long())
        return hits_Q > 0, known_Q > 0
    return label == top_Q, label >= FIRST_VALUE
