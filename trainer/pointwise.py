"""HSTU's attention over jagged tokens as Triton kernels: nothing is padded, and no scores are kept (arXiv 2402.17152).

    T  tokens of the batch     h  heads     k  dimension of a head     B  sequences     M  buckets of times
    N  the longest sequence that there may be

    s_ij = Q_i . K_j + place[i - j] + gap[bucket of now_i - time_j]      for j <= i of the same sequence
    O_i  = sum over j of silu(s_ij) V_j / N

The formulas are those of the padded one in trainer/models/hstu.py, which is the reference. Scores are computed anew in
the backward pass, a tile of rows i and columns j at a time: one kernel for the gradient of Q, one for those of K and V,
and one for those of the biases, which are summed over heads before atomics add them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.attention import Layout

TILE = 64
"""Rows and columns of a tile."""
COPIES = 64
"""Of the biases' gradients, so that few tiles add to the same number at a time."""


@dataclass(frozen=True)
class Times:
    """A bias of the time from each token until what another one knows."""

    gap_M: Tensor
    """The bias of each bucket; the last is of all longer times."""
    now_T: Tensor
    """When each token asks, and when each was, in the log's time, of which `unit` is a second."""
    time_T: Tensor
    unit: int
    log_step: float
    """The buckets are so wide in the logarithm of the seconds."""


@triton.jit
def _load(base, token, here, stride, head, size: tl.constexpr, width: tl.constexpr):
    """What these tokens have of `head`, [tokens, width]: zeros beyond `size`, and where a token is not `here`."""
    place = tl.arange(0, width)
    where = here[:, None] & (place < size)[None, :]
    return tl.load(base + token[:, None] * stride + head * size + place[None, :], mask=where, other=0.0)


@triton.jit
def _store(value, base, token, here, stride, head, size: tl.constexpr, width: tl.constexpr):
    place = tl.arange(0, width)
    where = here[:, None] & (place < size)[None, :]
    tl.store(base + token[:, None] * stride + head * size + place[None, :], value.to(base.dtype.element_ty), mask=where)


@triton.jit
def _product(left, right):
    """Left times the transpose of right, in fp32."""
    return tl.dot(left, tl.trans(right), input_precision="ieee")


@triton.jit
def _biases(i, j, begin, length, place, gap, now, time, unit, log_step, buckets, timed: tl.constexpr):
    """Of a tile, [i, j]: the places back, the buckets of the times, which keys are seen, and their biases."""
    back = i[:, None] - j[None, :]
    seen = (back >= 0) & (i < length)[:, None]
    bias = tl.load(place + back, mask=seen, other=0.0).to(tl.float32)
    bucket = back
    if timed:
        now_i = tl.load(now + begin + i, mask=i < length, other=0)
        time_j = tl.load(time + begin + j, mask=j < length, other=0)
        seconds = tl.maximum(tl.abs(now_i[:, None] - time_j[None, :]) // unit, 1).to(tl.float32)
        bucket = tl.minimum((tl.log(seconds) / log_step).to(tl.int32), buckets - 1)
        bias += tl.load(gap + bucket, mask=seen, other=0.0).to(tl.float32)
    return back, bucket, seen, bias


@triton.jit
def _slope(score):
    """The derivative of silu."""
    gate = tl.sigmoid(score)
    return gate * (1 + score * (1 - gate))


@triton.jit
def _forward(
    vqk, out, begins, place, gap, now, time, unit, log_step, buckets, scale, stride, heads,
    size: tl.constexpr, width: tl.constexpr, timed: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """A block of rows of one head and sequence."""
    begin, head = tl.load(begins + tl.program_id(0)).to(tl.int64), tl.program_id(1)
    length = tl.load(begins + tl.program_id(0) + 1) - begin
    first = tl.program_id(2) * tile
    if first < length:
        i = first + tl.arange(0, tile)
        q = _load(vqk + heads * size, begin + i, i < length, stride, head, size, width)
        total = tl.zeros((tile, width), tl.float32)
        for start in range(0, tl.minimum(first + tile, length), tile):
            j = start + tl.arange(0, tile)
            k = _load(vqk + 2 * heads * size, begin + j, j < length, stride, head, size, width)
            v = _load(vqk, begin + j, j < length, stride, head, size, width)
            _, _, seen, bias = _biases(i, j, begin, length, place, gap, now, time, unit, log_step, buckets, timed)
            score = _product(q, k) + bias
            weight = tl.where(seen, score * tl.sigmoid(score) * scale, 0.0)
            total += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        _store(total, out, begin + i, i < length, heads * size, head, size, width)


@triton.jit
def _backward_rows(
    vqk, grad, found, begins, place, gap, now, time, unit, log_step, buckets, scale, stride, heads,
    size: tl.constexpr, width: tl.constexpr, timed: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The gradient of Q for a block of rows of one head and sequence."""
    begin, head = tl.load(begins + tl.program_id(0)).to(tl.int64), tl.program_id(1)
    length = tl.load(begins + tl.program_id(0) + 1) - begin
    first = tl.program_id(2) * tile
    if first < length:
        i = first + tl.arange(0, tile)
        q = _load(vqk + heads * size, begin + i, i < length, stride, head, size, width)
        grad_i = _load(grad, begin + i, i < length, heads * size, head, size, width)
        total = tl.zeros((tile, width), tl.float32)
        for start in range(0, tl.minimum(first + tile, length), tile):
            j = start + tl.arange(0, tile)
            k = _load(vqk + 2 * heads * size, begin + j, j < length, stride, head, size, width)
            v = _load(vqk, begin + j, j < length, stride, head, size, width)
            _, _, seen, bias = _biases(i, j, begin, length, place, gap, now, time, unit, log_step, buckets, timed)
            score = _product(q, k) + bias
            grad_score = tl.where(seen, _product(grad_i, v) * _slope(score) * scale, 0.0)
            total += tl.dot(grad_score.to(k.dtype), k, input_precision="ieee")
        _store(total, found + heads * size, begin + i, i < length, stride, head, size, width)


@triton.jit
def _backward_columns(
    vqk, grad, found, begins, place, gap, now, time, unit, log_step, buckets, scale, stride, heads,
    size: tl.constexpr, width: tl.constexpr, timed: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The gradients of K and V for a block of columns of one head and sequence."""
    begin, head = tl.load(begins + tl.program_id(0)).to(tl.int64), tl.program_id(1)
    length = tl.load(begins + tl.program_id(0) + 1) - begin
    first = tl.program_id(2) * tile
    if first < length:
        j = first + tl.arange(0, tile)
        k = _load(vqk + 2 * heads * size, begin + j, j < length, stride, head, size, width)
        v = _load(vqk, begin + j, j < length, stride, head, size, width)
        total_k = tl.zeros((tile, width), tl.float32)
        total_v = tl.zeros((tile, width), tl.float32)
        for start in range(first, length, tile):
            i = start + tl.arange(0, tile)
            q = _load(vqk + heads * size, begin + i, i < length, stride, head, size, width)
            grad_i = _load(grad, begin + i, i < length, heads * size, head, size, width)
            _, _, seen, bias = _biases(i, j, begin, length, place, gap, now, time, unit, log_step, buckets, timed)
            score = _product(q, k) + bias
            weight = tl.where(seen, score * tl.sigmoid(score) * scale, 0.0)
            total_v += tl.dot(tl.trans(weight.to(v.dtype)), grad_i, input_precision="ieee")
            grad_score = tl.where(seen, _product(grad_i, v) * _slope(score) * scale, 0.0)
            total_k += tl.dot(tl.trans(grad_score.to(q.dtype)), q, input_precision="ieee")
        _store(total_v, found, begin + j, j < length, stride, head, size, width)
        _store(total_k, found + 2 * heads * size, begin + j, j < length, stride, head, size, width)


@triton.jit
def _backward_biases(
    vqk, grad, grad_place, grad_gap, longest, copies,
    begins, place, gap, now, time, unit, log_step, buckets, scale, stride, heads,
    size: tl.constexpr, width: tl.constexpr, timed: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """What a block of rows of one sequence adds to the gradients of the biases, over all heads."""
    begin = tl.load(begins + tl.program_id(0)).to(tl.int64)
    length = tl.load(begins + tl.program_id(0) + 1) - begin
    first, copy = tl.program_id(1) * tile, (tl.program_id(0) + tl.program_id(1)) % copies
    if first < length:
        i = first + tl.arange(0, tile)
        for start in range(0, tl.minimum(first + tile, length), tile):
            j = start + tl.arange(0, tile)
            back, bucket, seen, bias = _biases(
                i, j, begin, length, place, gap, now, time, unit, log_step, buckets, timed
            )
            total = tl.zeros((tile, tile), tl.float32)
            for head in range(heads):
                q = _load(vqk + heads * size, begin + i, i < length, stride, head, size, width)
                k = _load(vqk + 2 * heads * size, begin + j, j < length, stride, head, size, width)
                v = _load(vqk, begin + j, j < length, stride, head, size, width)
                grad_i = _load(grad, begin + i, i < length, heads * size, head, size, width)
                total += _product(grad_i, v) * _slope(_product(q, k) + bias) * scale
            tl.atomic_add(grad_place + copy * longest + back, total, mask=seen)
            if timed:
                tl.atomic_add(grad_gap + copy * buckets + bucket, total, mask=seen)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vqk_TX: Tensor, place_N: Tensor, gap_M: Tensor | None, layout: Layout, heads: int, times: Times | None
    ) -> Tensor:
        vqk_TX = vqk_TX.contiguous()
        shared = _shared(vqk_TX, place_N, gap_M, layout, heads, times)
        out_TD = vqk_TX.new_empty(len(vqk_TX), vqk_TX.shape[1] // 3)
        _forward[len(layout.lengths_B), heads, triton.cdiv(layout.longest, TILE)](vqk_TX, out_TD, *shared)
        ctx.save_for_backward(vqk_TX, place_N, gap_M)
        ctx.rest = layout, heads, times
        return out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        vqk_TX, place_N, gap_M = ctx.saved_tensors
        layout, heads, _ = ctx.rest
        grad_TD, found_TX = gradients[0].contiguous(), torch.empty_like(vqk_TX)
        shared = _shared(*ctx.saved_tensors, *ctx.rest)
        blocks, sequences = triton.cdiv(layout.longest, TILE), len(layout.lengths_B)
        _backward_rows[sequences, heads, blocks](vqk_TX, grad_TD, found_TX, *shared)
        _backward_columns[sequences, heads, blocks](vqk_TX, grad_TD, found_TX, *shared)
        place_CN = torch.zeros(COPIES, len(place_N), device=vqk_TX.device)
        gap_CM = torch.zeros(COPIES, 0 if gap_M is None else len(gap_M), device=vqk_TX.device)
        _backward_biases[sequences, blocks](vqk_TX, grad_TD, place_CN, gap_CM, len(place_N), COPIES, *shared)
        grad_gap_M = None if gap_M is None else gap_CM.sum(0).to(gap_M.dtype)
        return found_TX, place_CN.sum(0).to(place_N.dtype), grad_gap_M, None, None, None


def _shared(
    vqk_TX: Tensor, place_N: Tensor, gap_M: Tensor | None, layout: Layout, heads: int, times: Times | None
) -> tuple[Any, ...]:
    """The arguments that all kernels have, in their order."""
    size = vqk_TX.shape[1] // (3 * heads)
    if gap_M is None or times is None:
        timed: tuple[Any, ...] = (place_N, layout.begins, layout.begins, 1, 1.0, 0)
    else:
        timed = (gap_M, times.now_T, times.time_T, times.unit, times.log_step, len(gap_M))
    return (
        layout.begins, place_N, *timed, 1 / len(place_N), vqk_TX.stride(0), heads,
        size, max(triton.next_power_of_2(size), 16), gap_M is not None, TILE,
    )  # fmt: skip


def pointwise_attention(vqk_TX: Tensor, place_N: Tensor, layout: Layout, heads: int, times: Times | None) -> Tensor:
    """[T, 3 h k] -> [T, h k], from V, Q and K of all heads side by side; on a GPU."""
    gap_M = None if times is None else times.gap_M
    out_TD: Tensor = _Pointwise.apply(vqk_TX, place_N, gap_M, layout, heads, times)
    return out_TD
