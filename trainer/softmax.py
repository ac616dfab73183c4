"""The item losses: softmax over sampled negatives, or over the whole catalogue, of which each worker has a slice: a
block of the item table's rows.

    Q  targets of this worker     A  targets of all workers     C  a chunk of either     D  dimension
    N  negatives                  v  rows of this worker's slice                         n  a tile of the slice
    S  further columns of a query, of which each item adds one to its score               X  D + S

Losses are sums over targets. Gradients are taken in the forward pass, chunk by chunk, so that at most `scores` scores
are alive (and their softmax). Scores are products in autocast's type where it is on; the softmax, the losses and the
sums of gradients are in float32 at least.

With `Pointed`, each target has further candidates of its own, of which an item may have several, and their
probabilities are added to the item's (a pointer mixture, arXiv 1609.07843):

    P(i) = (exp s(i) + sum of exp a over the candidates that are i) / (sum of exp s over the items + sum of exp a)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from embeddings.workers import gather_rows
from ingest.features.feature import FIRST_VALUE
from trainer.negatives import Negatives

FEWEST = 64
"""Targets in a chunk below which matrix products are slow, and the slice is rather cut into tiles."""
TILED = 256
"""Targets in a chunk that is scored tile by tile."""


@dataclass(frozen=True)
class Pointed:
    """The log-sum-exps of each target's own candidates: of all of them, and of those that are the target."""

    all_Q: Tensor
    target_Q: Tensor


def default_scores(device: torch.device) -> int:
    """Scores alive at once by default: few on a CPU, in whose cache they stay, many on a GPU."""
    return 2**25 if device.type == "cuda" else 2**19


def sampled_softmax(
    query_QX: Tensor,
    positive_QD: Tensor,
    negative_ND: Tensor,
    target_Q: Tensor,
    negatives: Negatives,
    weight_Q: Tensor,
    scores: int,
    pointed: Pointed | None = None,
    adds: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The weighted sum of -log of the target's probability among itself, the negatives and `Pointed`; a scalar.

    `positive_QD`, `negative_ND`: rows of the item table. `adds`: which of the query's further columns the positives'
    scores gain, int64 [Q], and the negatives', [N]. A negative's score is lowered by the logarithm of its expected
    count, which makes the denominator an unbiased estimate of the full softmax's (Bengio and Senecal 2008); the target
    is there by itself and takes no correction (arXiv 2507.09331). A negative that is the target is masked. An unknown
    target (below `FIRST_VALUE`) has no score; one that nothing points at has to have weight 0.
    """
    all_Q, own_Q = _pointed(pointed, query_QX, weight_Q)
    loss: Tensor = _SampledSoftmax.apply(
        query_QX,
        positive_QD,
        negative_ND,
        all_Q,
        own_Q,
        target_Q,
        negatives.item_N,
        negatives.log_q_N,
        weight_Q,
        scores,
        *(adds or (None, None)),
    )
    return loss


def _pointed(pointed: Pointed | None, query_QX: Tensor, weight_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Both log-sum-exps; that of a target without weight is any number, so that its loss is no NaN."""
    if pointed is None:
        nothing_Q = query_QX.new_full((len(query_QX),), -torch.inf)
        return nothing_Q, nothing_Q.masked_fill(weight_Q == 0, 0)
    return pointed.all_Q, pointed.target_Q.masked_fill(weight_Q == 0, 0)


class _SampledSoftmax(torch.autograd.Function):
    """With t the target's score, L the log-sum-exp of the negatives' and those of `Pointed`, a target's loss is
    log(exp L + exp t + exp all) - log(exp t + exp own)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_QX: Tensor,
        positive_QD: Tensor,
        negative_ND: Tensor,
        all_Q: Tensor,
        own_Q: Tensor,
        target_Q: Tensor,
        item_N: Tensor,
        log_q_N: Tensor,
        weight_Q: Tensor,
        scores: int,
        adds_Q: Tensor | None,
        adds_N: Tensor | None,
    ) -> Tensor:
        product, exact = _types(query_QX, negative_ND)
        make = torch.empty_like if len(item_N) else torch.zeros_like
        grad_query_QX, grad_positive_QD = make(query_QX, dtype=exact), make(positive_QD, dtype=exact)
        grad_negative_ND = torch.zeros_like(negative_ND, dtype=exact)
        grad_all_Q, grad_own_Q = make(all_Q, dtype=exact), make(own_Q, dtype=exact)
        loss = grad_query_QX.new_zeros(())
        rows_ND, shift_N, weight_Q = negative_ND.to(product), log_q_N.to(exact).neg(), weight_Q.to(exact)
        all_X, own_X, dimension = all_Q.to(exact), own_Q.to(exact), positive_QD.shape[1]
        chunks = _chunks(len(query_QX), max(1, scores // len(item_N))) if len(item_N) else ()
        with torch.autocast(query_QX.device.type, enabled=False):
            for part in chunks:
                query_CX, positive_CD, weight_C = query_QX[part].to(exact), positive_QD[part].to(exact), weight_Q[part]
                query_CD, adds_C = query_CX[:, :dimension], None if adds_Q is None else adds_Q[part]
                positive_CX = _widened(positive_CD, adds_C, query_CX.shape[1])
                scores_CN = _scores(query_CX, rows_ND, adds_N, shift_N)
                probability_CN, log_sampled_C = _softmax(_mask(scores_CN, item_N, target_Q[part]))
                score_C = (query_CX * positive_CX).sum(dim=1).masked_fill_(target_Q[part] < FIRST_VALUE, -torch.inf)
                log_total_C = torch.logaddexp(torch.logaddexp(log_sampled_C, score_C), all_X[part])
                log_own_C = torch.logaddexp(score_C, own_X[part])
                loss += weight_C @ (log_total_C - log_own_C)
                sampled_C1 = (weight_C * (log_sampled_C - log_total_C).exp_())[:, None]
                moved_C1 = (weight_C * ((score_C - log_total_C).exp_() - (score_C - log_own_C).exp_()))[:, None]
                mean_CX = _mean(probability_CN, rows_ND, adds_N, query_CX.shape[1])
                torch.addcmul(mean_CX.mul_(sampled_C1), positive_CX, moved_C1, out=grad_query_QX[part])
                torch.mul(query_CD, moved_C1, out=grad_positive_QD[part])
                _add_product(grad_negative_ND, probability_CN.T, query_CD * sampled_C1, product)
                torch.mul(weight_C, (all_X[part] - log_total_C).exp_(), out=grad_all_Q[part])
                torch.mul(weight_C, (own_X[part] - log_own_C).exp_().neg_(), out=grad_own_Q[part])
        gradients = (grad_query_QX, grad_positive_QD, grad_negative_ND, grad_all_Q, grad_own_Q)
        ctx.save_for_backward(*_like(gradients, (query_QX, positive_QD, negative_ND, all_Q, own_Q)))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved.mul_(gradients[0]) for saved in ctx.saved_tensors), *[None] * 7


def full_softmax(
    query_QX: Tensor,
    items_vD: Tensor,
    row_Q: Tensor,
    weight_Q: Tensor,
    first: int,
    scores: int,
    pointed: Pointed | None = None,
    adds_v: Tensor | None = None,
    learned: int | None = None,
) -> Tensor:
    """The weighted sum of -log of the target's probability, over all workers' slices of the catalogue and what is
    pointed at; a scalar.

    `items_vD`: the item table's rows from `first` on, this worker's slice without padding and unknown. `row_Q`: where
    the targets lie in the table; one in nobody's slice that nothing points at has to have weight 0. `adds_v`: which of
    the query's further columns each row's score gains, int64. `learned`: how many of the rows' columns, the first, take
    a gradient; by default all do. All workers have to call it at the same time, and its backward with the same factor:
    the sum of their losses is the global loss, of which `items_vD` gets the whole gradient here, as do the worker's own
    queries.

    As in Megatron-LM's vocabulary-parallel cross-entropy (arXiv 1909.08053), queries travel, [A, D], and scores do not.
    """
    all_Q, own_Q = _pointed(pointed, query_QX, weight_Q)
    given = all_Q, own_Q, row_Q, weight_Q, pointed is not None
    learned = items_vD.shape[1] if learned is None else learned
    loss: Tensor = _FullSoftmax.apply(query_QX, items_vD, *given, first, scores, adds_v, learned)
    return loss


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_QX: Tensor,
        items_vD: Tensor,
        all_Q: Tensor,
        own_Q: Tensor,
        row_Q: Tensor,
        weight_Q: Tensor,
        pointed: bool,
        first: int,
        scores: int,
        adds_v: Tensor | None,
        learned: int,
    ) -> Tensor:
        product, exact = _types(query_QX, items_vD)
        with torch.autocast(query_QX.device.type, enabled=False):
            query_AX, sizes = gather_rows(query_QX)
            row_A, weight_A = (gather_rows(rows, sizes)[0] for rows in (row_Q, weight_Q.to(exact)))
            if pointed:
                all_A, log_own_A = (gather_rows(rows.to(exact), sizes)[0] for rows in (all_Q, own_Q))
            else:
                all_A = torch.full_like(weight_A, -torch.inf)
                log_own_A = all_A.masked_fill(weight_A == 0, 0)
            workers, before = len(sizes), sum(sizes[: dist.get_rank()])
            own = slice(before, before + len(query_QX))
            part = _Slice(query_AX.to(exact), items_vD, weight_A, all_A, adds_v, product, scores, workers == 1, learned)
            part.score()
            own_a = ((row_A >= first) & (row_A < first + len(items_vD))).nonzero()[:, 0]
            column_a = row_A[own_a] - first
            positive_aD = items_vD[column_a].to(exact)
            positive_aX = _widened(positive_aD, None if adds_v is None else adds_v[column_a], query_QX.shape[1])
            positive_A = torch.zeros_like(weight_A)
            positive_A[own_a] = (part.query_AX[own_a] * positive_aX).sum(dim=1)
            log_total_A = part.log_total_A
            if workers > 1:
                log_total_A, positive_A = _over_workers(log_total_A, positive_A)
            positive_A.masked_fill_(row_A < FIRST_VALUE, -torch.inf)
            log_total_A = torch.logaddexp(log_total_A, all_A)
            part.mean_AX *= (part.log_total_A - log_total_A).exp_()[:, None]
            log_target_A = torch.logaddexp(positive_A, log_own_A)
            share_a = (positive_A - log_target_A).exp_()[own_a, None]
            grad_query_AX = part.mean_AX.index_add_(0, own_a, positive_aX * share_a, alpha=-1).mul_(weight_A[:, None])
            summing = dist.all_reduce(grad_query_AX, async_op=True) if workers > 1 else None
            grad_items_vD = part.grad_items(log_total_A)
            grad_items_vD.index_add_(0, column_a, part.weighted_AD[own_a] * share_a, alpha=-1)
            if learned < items_vD.shape[1]:
                grad_items_vD = torch.nn.functional.pad(grad_items_vD, (0, items_vD.shape[1] - learned))
            if summing is not None:
                summing.wait()
            loss = weight_A[own] @ (log_total_A - log_target_A)[own]
            grad_all_Q = (weight_A * (all_A - log_total_A).exp_())[own]
            grad_own_Q = (weight_A * (log_own_A - log_target_A).exp_().neg_())[own]
        gradients = (grad_query_AX[own], grad_items_vD, grad_all_Q, grad_own_Q)
        ctx.save_for_backward(*_like(gradients, (query_QX, items_vD, all_Q, own_Q)))
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved.mul_(gradients[0]) for saved in ctx.saved_tensors), *[None] * 7


class _Slice:
    """The softmax of all queries over one slice of the catalogue, tile by tile.

    Scores are computed once where the slice is the whole catalogue and one tile wide (`fused`), else twice: for the
    log-sum-exp and the mean row, and, once the log-sum-exp over everything is known, for the rows' gradients.
    """

    def __init__(
        self,
        query_AX: Tensor,
        items_vD: Tensor,
        weight_A: Tensor,
        all_A: Tensor,
        adds_v: Tensor | None,
        product: torch.dtype,
        scores: int,
        fused: bool,
        learned: int,
    ) -> None:
        self.query_AX, self.all_A, self.adds_v, self.product = query_AX, all_A, adds_v, product
        self.rows_vD = items_vD.to(product)
        self.weighted_AD = weight_A[:, None] * query_AX[:, :learned]
        """Of the columns that are learned."""
        self.mean_AX = torch.zeros_like(query_AX)
        """The mean row under the softmax over the slice, and the shares of the columns that are added."""
        self.log_total_A = torch.full_like(weight_A, -torch.inf)
        self.grad_items_vD = torch.zeros_like(items_vD[:, :learned], dtype=query_AX.dtype)
        whole = scores // max(1, len(items_vD))
        chunk = whole if whole >= FEWEST else min(TILED, scores)
        self.chunks = list(_chunks(len(query_AX), chunk))
        self.tiles = list(_chunks(len(items_vD), max(1, scores // chunk)))
        self.fused = fused and len(self.tiles) == 1

    def score(self) -> None:
        """Find `log_total_A` and `mean_AX`."""
        for chunk in self.chunks:
            mean_CX, log_total_C = self.mean_AX[chunk], self.log_total_A[chunk]
            for tile in self.tiles:
                rows_nD, adds_n = self._tile(tile)
                probability_Cn, log_tile_C = _softmax(_scores(self.query_AX[chunk], rows_nD, adds_n))
                tile_CX = _mean(probability_Cn, rows_nD, adds_n, mean_CX.shape[1])
                if self.fused:
                    share_C = (log_tile_C - torch.logaddexp(log_tile_C, self.all_A[chunk])).exp_()
                    weighted_CD = self.weighted_AD[chunk] * share_C[:, None]
                    _add_product(self.grad_items_vD, probability_Cn.T, weighted_CD, self.product)
                both_C = torch.logaddexp(log_total_C, log_tile_C)
                mean_CX *= (log_total_C - both_C).exp_()[:, None]
                mean_CX += tile_CX * (log_tile_C - both_C).exp_()[:, None]
                log_total_C.copy_(both_C)

    def grad_items(self, log_total_A: Tensor) -> Tensor:
        """What the scores but for the targets' own give, [v, D]; `log_total_A` is over everything."""
        if self.fused:
            return self.grad_items_vD
        for tile in self.tiles:
            for chunk in self.chunks:
                scores_Cn = _scores(self.query_AX[chunk], *self._tile(tile))
                probability_Cn = scores_Cn.sub_(log_total_A[chunk, None]).exp_()
                _add_product(self.grad_items_vD[tile], probability_Cn.T, self.weighted_AD[chunk], self.product)
        return self.grad_items_vD

    def _tile(self, tile: slice) -> tuple[Tensor, Tensor | None]:
        return self.rows_vD[tile], None if self.adds_v is None else self.adds_v[tile]


def _over_workers(log_total_A: Tensor, positive_A: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp over all slices, and the targets' scores, each of which one worker has."""
    largest_A = log_total_A.clone()
    dist.all_reduce(largest_A, op=dist.ReduceOp.MAX)
    sums_2A = torch.stack([(log_total_A - largest_A).exp_(), positive_A])
    dist.all_reduce(sums_2A)
    return largest_A + sums_2A[0].log(), sums_2A[1]


def _types(query_QX: Tensor, rows_ND: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """The type of matrix products, and that of everything else."""
    device = query_QX.device.type
    on = torch.is_autocast_enabled(device)
    product = torch.get_autocast_dtype(device) if on else torch.promote_types(query_QX.dtype, rows_ND.dtype)
    return product, torch.promote_types(product, torch.float32)


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    return (slice(begin, min(begin + chunk, size)) for begin in range(0, size, chunk))


def _scores(query_CX: Tensor, rows_ND: Tensor, adds_N: Tensor | None, shift_N: Tensor | None = None) -> Tensor:
    """Products of queries and rows in the rows' type, as the queries' type, with `shift_N` and the columns added."""
    dimension = rows_ND.shape[1]
    product_CD = query_CX[:, :dimension].to(rows_ND.dtype)
    if shift_N is not None and shift_N.dtype == rows_ND.dtype:
        scores_CN = torch.addmm(shift_N, product_CD, rows_ND.T)
    else:
        scores_CN = (product_CD @ rows_ND.T).to(query_CX.dtype)
        scores_CN = scores_CN if shift_N is None else scores_CN.add_(shift_N)
    return scores_CN if adds_N is None else scores_CN.add_(query_CX[:, dimension:].index_select(1, adds_N))


def _mean(probability_CN: Tensor, rows_ND: Tensor, adds_N: Tensor | None, width: int) -> Tensor:
    """The mean row of each query, and behind it how probable the items are that add each column: [C, `width`]."""
    mean_CD = (probability_CN.to(rows_ND.dtype) @ rows_ND).to(probability_CN.dtype)
    if adds_N is None:
        return mean_CD
    share_CS = mean_CD.new_zeros(len(mean_CD), width - mean_CD.shape[1]).index_add_(1, adds_N, probability_CN)
    return torch.cat([mean_CD, share_CS], dim=1)


def _widened(rows_ND: Tensor, adds_N: Tensor | None, width: int) -> Tensor:
    """The rows as they are multiplied with whole queries, [N, `width`]."""
    if adds_N is None:
        return rows_ND
    one_NS = rows_ND.new_zeros(len(rows_ND), width - rows_ND.shape[1]).scatter_(1, adds_N[:, None], 1)
    return torch.cat([rows_ND, one_NS], dim=1)


def _mask(scores_CN: Tensor, item_N: Tensor, target_C: Tensor) -> Tensor:
    """Puts the scores of negatives that are the target out of the softmax, in place; `item_N` is ascending.

    The lowest finite number stands for -inf: a row of nothing else has a softmax without NaN, and no weight.
    """
    column_C = torch.searchsorted(item_N, target_C).clamp_(max=len(item_N) - 1)
    hit_C1 = (item_N[column_C] == target_C)[:, None]
    value_C1 = scores_CN.gather(1, column_C[:, None]).masked_fill_(hit_C1, torch.finfo(scores_CN.dtype).min)
    return scores_CN.scatter_(1, column_C[:, None], value_C1)


def _softmax(scores_CN: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of each row and its log-sum-exp: the largest score less the logarithm of its probability."""
    probability_CN = torch.softmax(scores_CN, dim=1)
    return probability_CN, scores_CN.amax(dim=1) - probability_CN.amax(dim=1).log_()


def _add_product(
    total_ND: Tensor, left_NC: Tensor, right_CD: Tensor, product: torch.dtype, sign: Literal[1, -1] = 1
) -> None:
    if total_ND.dtype == product:
        total_ND.addmm_(left_NC, right_CD, alpha=sign)
    else:
        total_ND.add_(left_NC.to(product) @ right_CD.to(product), alpha=sign)


def _like(gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
    return (gradient.to(given.dtype) for gradient, given in zip(gradients, inputs, strict=True))
