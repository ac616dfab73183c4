"""Causal attention over jagged sequences: padded only inside the kernel, and there only a little.

    T  tokens of the batch     D  model dimension     h  heads     k  dimension of a head
    b  sequences of a group    L  the longest of them

Sequences come sorted by length. They are cut into groups of similar length, each padded at the right to its longest;
a causal mask then keeps every real token from padding without a mask of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """Sequences of similar length: tokens `begin` to `end`, as `b` x `L` with the real ones at `place_N`."""

    begin: int
    end: int
    b: int
    L: int
    place_N: Tensor | None
    """None where nothing is padded."""


class Layout:
    """How a batch's tokens are padded for attention; made once a batch and used by every layer."""

    def __init__(self, lengths_B: Tensor, padding: float = 0.1) -> None:
        """`lengths_B` in rising order. Up to the share `padding` of a group's places may be empty."""
        device, lengths = lengths_B.device, lengths_B.tolist()
        self.groups: list[Group] = []
        first, begin, real = 0, 0, 0
        for row in range(1, len(lengths) + 1):
            real += lengths[row - 1]
            if row < len(lengths):
                places = (row + 1 - first) * lengths[row]
                if places - real - lengths[row] <= padding * places:
                    continue
            own_B = torch.tensor(lengths[first:row])
            end, b, longest = begin + int(own_B.sum()), row - first, lengths[row - 1]
            place_N = None
            if end - begin < b * longest:
                place_N = torch.nonzero((torch.arange(longest) < own_B[:, None]).flatten()).flatten().to(device)
            self.groups.append(Group(begin, end, b, longest, place_N))
            first, begin, real = row, end, 0

    def pad(self, x_TX: Tensor, group: Group) -> Tensor:
        """The group's tokens as [b, L, X], zeros where it is padded."""
        part_NX = x_TX[group.begin : group.end]
        if group.place_N is None:
            return part_NX.view(group.b, group.L, -1)
        padded: Tensor = _Pad.apply(part_NX, group.place_N, group.b * group.L)
        return padded.view(group.b, group.L, -1)

    def unpad(self, x_bLX: Tensor, group: Group) -> Tensor:
        """The group's real tokens, [N, X]."""
        flat = x_bLX.reshape(group.b * group.L, -1)
        if group.place_N is None:
            return flat
        unpadded: Tensor = _Unpad.apply(flat, group.place_N)
        return unpadded

    def window_masks(self, time_T: Tensor, window: int) -> list[Tensor]:
        """For each group the [b, 1, L, L] mask: token i sees j where j <= i and time_i - time_j <= window."""
        masks = []
        for group in self.groups:
            time_bL = self.pad(time_T.unsqueeze(1), group).squeeze(2)
            past_bLL = time_bL[:, :, None] - time_bL[:, None, :] <= window
            masks.append((past_bLL & time_bL.new_ones(group.L, group.L, dtype=torch.bool).tril()).unsqueeze(1))
        return masks


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NX: Tensor, place_N: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(place_N)
        return x_NX.new_zeros(size, x_NX.shape[1]).index_copy_(0, place_N, x_NX)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (place_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, place_N), None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PX: Tensor, place_N: Tensor) -> Tensor:
        ctx.save_for_backward(place_N)
        ctx.size = len(x_PX)
        return x_PX.index_select(0, place_N)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (place_N,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.size, gradients[0].shape[1]).index_copy_(0, place_N, gradients[0]), None


class CausalAttention(nn.Module):
    """Multi-head causal self-attention over jagged tokens, [T, D] -> [T, D]; optionally cut at a time window."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, x_TD: Tensor, layout: Layout, masks: list[Tensor] | None = None) -> Tensor:
        qkv_T3D = self.qkv(x_TD)
        parts = [
            self._attend(qkv_T3D, layout, group, None if masks is None else masks[number])
            for number, group in enumerate(layout.groups)
        ]
        attended: Tensor = self.out(torch.cat(parts) if len(parts) > 1 else parts[0])
        return attended

    def _attend(self, qkv_T3D: Tensor, layout: Layout, group: Group, mask: Tensor | None) -> Tensor:
        padded = layout.pad(qkv_T3D, group).view(group.b, group.L, 3, self.heads, -1)
        q_bhLk, k_bhLk, v_bhLk = padded.permute(2, 0, 3, 1, 4)
        out_bhLk = F.scaled_dot_product_attention(
            q_bhLk,
            k_bhLk,
            v_bhLk,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        return layout.unpad(out_bhLk.transpose(1, 2).flatten(2), group)
