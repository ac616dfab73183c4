"""Causal attention over jagged sequences: padded only inside the kernel, and there only a little.

    T  tokens of the batch     D  model dimension     h  heads     k  dimension of a head
    b  sequences of a group    L  the longest of them     P  places of all groups: tokens and padding

Sequences come sorted by length. They are cut into groups of similar length, each padded at the right to its longest;
a causal mask then keeps every real token from padding without a mask of its own. On a GPU in half precision the causal
kernel reads the jagged tokens as they are.

Dropout of the attention's weights is left out: no kernel that does not materialise them has it on CPU, where it made
the attention itself take two to three times as long.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PRODUCTS = 256
"""Tokens of a sequence up to which batched products beat the flash kernel on a CPU, whose threads it leaves idle."""


class Layout:
    """How a batch's tokens are padded for attention; made once a batch and used by every layer."""

    def __init__(self, lengths_B: Tensor, device: torch.device | None = None, padding: float = 0.1) -> None:
        """`lengths_B` on the CPU, in rising order. Up to the share `padding` of a group's places may be empty."""
        self.lengths_B, self.device = lengths_B, device or lengths_B.device
        self.groups = _groups(lengths_B.tolist(), padding)
        """Sequences and the longest of them, for each group."""
        self.sizes = [b * longest for b, longest in self.groups]
        begin_B = lengths_B.cumsum(0) - lengths_B
        sequences = torch.tensor([b for b, _ in self.groups])
        padded_B = torch.tensor([longest for _, longest in self.groups]).repeat_interleave(sequences)
        nth_P = torch.arange(sum(self.sizes)) - (padded_B.cumsum(0) - padded_B).repeat_interleave(padded_B)
        length_P = lengths_B.repeat_interleave(padded_B)
        source_P = begin_B.repeat_interleave(padded_B) + torch.minimum(nth_P, length_P - 1)
        self.is_padded = len(source_P) > int(lengths_B.sum())
        self.source_P = source_P.to(self.device)
        """The token that stands at each place; padding repeats the last of its sequence."""
        self.place_T = torch.nonzero(nth_P < length_P)[:, 0].to(self.device)

    @cached_property
    def begins(self) -> Tensor:
        """Where each sequence begins, and the last ends, as the jagged kernels want it."""
        return F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32).to(self.device)

    @property
    def longest(self) -> int:
        return self.groups[-1][1]

    def pad(self, x_TX: Tensor) -> Tensor:
        """The tokens at their places, group after group, [P, X]."""
        return x_TX.index_select(0, self.source_P) if self.is_padded else x_TX

    def unpad(self, x_PX: Tensor) -> Tensor:
        """The real tokens, [T, X]."""
        return x_PX.index_select(0, self.place_T) if self.is_padded else x_PX

    def spread(self, x_TX: Tensor) -> Tensor:
        """The tokens at their places and zeros elsewhere, [P, X]: what `unpad` gives back to its input."""
        if not self.is_padded:
            return x_TX
        return x_TX.new_zeros(len(self.source_P), x_TX.shape[1]).index_copy_(0, self.place_T, x_TX)

    def grouped(self, x_PX: Tensor) -> list[Tensor]:
        """Views of each group's places, [b, L, X]."""
        parts = x_PX.split(self.sizes)
        return [part.view(b, longest, -1) for part, (b, longest) in zip(parts, self.groups, strict=True)]

    def window_masks(self, time_T: Tensor, window: int) -> list[Tensor]:
        """For each group the [b, 1, L, L] mask: token i sees j where j <= i and time_i - time_j <= window."""
        masks = []
        for time_bL1 in self.grouped(self.pad(time_T.unsqueeze(1))):
            past_bLL = time_bL1 - time_bL1.transpose(1, 2) <= window
            masks.append(past_bLL.tril_().unsqueeze(1))
        return masks


def _groups(lengths: list[int], padding: float) -> list[tuple[int, int]]:
    groups = []
    first, real = 0, 0
    for row, length in enumerate(lengths):
        real += length
        if row + 1 < len(lengths):
            longer = lengths[row + 1]
            places = (row + 2 - first) * longer
            if places - real - longer <= padding * places:
                continue
        groups.append((row + 1 - first, length))
        first, real = row + 1, 0
    return groups


class _PaddedAttention(torch.autograd.Function):
    """Attention of every group, [T, 3 D] -> [T, D]; each gradient is written once, to its place.

    Padding needs no care in the backward pass: no real token sees it, and what it sees itself is dropped.
    """

    @staticmethod
    def forward(ctx: Any, qkv_TX: Tensor, layout: Layout, heads: int, masks: list[Tensor] | None) -> Tensor:
        qkv_PX = layout.pad(qkv_TX)
        out_PD = qkv_PX.new_empty(len(qkv_PX), qkv_PX.shape[1] // 3)
        ctx.layout, ctx.heads, ctx.groups = layout, heads, []
        for number, (qkv_bLX, out_bLD) in enumerate(zip(layout.grouped(qkv_PX), layout.grouped(out_PD), strict=True)):
            kind = _Products if _takes_products(qkv_bLX) else _Kernel
            group = kind(qkv_bLX.unflatten(2, (3, heads, -1)), None if masks is None else masks[number])
            out_bLD.unflatten(2, (heads, -1)).copy_(group.out_bhLk.transpose(1, 2))
            ctx.groups.append(group)
        return layout.unpad(out_PD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        layout, heads = ctx.layout, ctx.heads
        grad_PD = layout.spread(gradients[0])
        grad_PX = grad_PD.new_empty(len(grad_PD), 3 * grad_PD.shape[1])
        for grad_bLD, grad_bLX, group in zip(layout.grouped(grad_PD), layout.grouped(grad_PX), ctx.groups, strict=True):
            found = group.gradients(grad_bLD.unflatten(2, (heads, -1)).transpose(1, 2))
            for part_bLhk, grad_bhLk in zip(grad_bLX.unflatten(2, (3, heads, -1)).unbind(2), found, strict=True):
                part_bLhk.copy_(grad_bhLk.transpose(1, 2))
        ctx.groups = []
        return layout.unpad(grad_PX), None, None, None


def _takes_products(qkv_bLX: Tensor) -> bool:
    return qkv_bLX.is_cpu and qkv_bLX.shape[1] <= MOST_PRODUCTS and qkv_bLX.dtype in (torch.float32, torch.float64)


class _Kernel:
    """One group through scaled_dot_product_attention."""

    def __init__(self, qkv_bL3hk: Tensor, mask: Tensor | None) -> None:
        self.qkv = [part.transpose(1, 2).detach().requires_grad_() for part in qkv_bL3hk.unbind(2)]
        q_bhLk, k_bhLk, v_bhLk = self.qkv
        with torch.enable_grad():
            self.attended = F.scaled_dot_product_attention(
                q_bhLk, k_bhLk, v_bhLk, attn_mask=mask, is_causal=mask is None
            )
        self.out_bhLk = self.attended.detach()

    def gradients(self, grad_bhLk: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.attended, self.qkv, grad_bhLk)


class _Products:
    """One group of short sequences on a CPU as batched matrix products with the scores kept."""

    def __init__(self, qkv_bL3hk: Tensor, mask: Tensor | None) -> None:
        b, L, _, h, k = qkv_bL3hk.shape
        self.shape, self.scale = (b, h, L, k), k**-0.5
        self.q_nLk, self.k_nLk, self.v_nLk = qkv_bL3hk.permute(2, 0, 3, 1, 4).reshape(3, b * h, L, k)
        future_LL = torch.full((L, L), -torch.inf, dtype=qkv_bL3hk.dtype).triu(1)
        scores_nLL = torch.baddbmm(future_LL, self.q_nLk, self.k_nLk.mT, alpha=self.scale)
        if mask is not None:
            scores_nLL.view(b, h, L, L).masked_fill_(~mask, -torch.inf)
        self.weights_nLL = scores_nLL.softmax(dim=2)
        self.out_bhLk = torch.bmm(self.weights_nLL, self.v_nLk).view(self.shape)

    def gradients(self, grad_bhLk: Tensor) -> tuple[Tensor, ...]:
        grad_nLk = grad_bhLk.reshape(self.v_nLk.shape)
        grad_weights_nLL = torch.bmm(grad_nLk, self.v_nLk.mT)
        grad_nLL = torch._softmax_backward_data(grad_weights_nLL, self.weights_nLL, 2, grad_nLk.dtype)
        found = (
            torch.bmm(grad_nLL, self.k_nLk).mul_(self.scale),
            torch.bmm(grad_nLL.mT, self.q_nLk).mul_(self.scale),
            torch.bmm(self.weights_nLL.mT, grad_nLk),
        )
        return tuple(gradient.view(self.shape) for gradient in found)


class CausalAttention(nn.Module):
    """Multi-head causal self-attention over jagged tokens, [T, D] -> [T, D]; optionally cut at a time window."""

    def __init__(self, dimension: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, x_TD: Tensor, layout: Layout, masks: list[Tensor] | None = None) -> Tensor:
        qkv_TX = self.qkv(x_TD)
        if masks is None and qkv_TX.is_cuda and qkv_TX.dtype in (torch.bfloat16, torch.float16):
            attended_TD = self._jagged(qkv_TX, layout)
        else:
            attended_TD = _PaddedAttention.apply(qkv_TX, layout, self.heads, masks)
        out: Tensor = self.out(attended_TD)
        return out

    def _jagged(self, qkv_TX: Tensor, layout: Layout) -> Tensor:
        """Flash attention over sequences of any lengths, nothing padded."""
        from torch.nn.attention.varlen import varlen_attn

        q_Thk, k_Thk, v_Thk = qkv_TX.unflatten(1, (3, self.heads, -1)).unbind(1)
        begins, longest = layout.begins, layout.longest
        out_Thk = varlen_attn(q_Thk, k_Thk, v_Thk, begins, begins, longest, longest, window_size=(-1, 0))
        assert isinstance(out_Thk, Tensor)
        return out_Thk.flatten(1)
