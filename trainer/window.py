"""Which tokens a token sees within a window of time: masks of padded groups, or blocks of the jagged tokens.

    T  tokens of the batch     n  blocks of `BLOCK` tokens     b, L  as in trainer/attention.py

Token i sees j of its own sequence where j <= i and time_i - time_j <= span. Varlen kernels have windows of places
alone, so on a GPU it is flex_attention: of a row of blocks it works on those from its first sequence's beginning on.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.attention import Layout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


class Window:
    """Made once a batch. `span` is in the unit of `time_T`."""

    def __init__(self, layout: Layout, time_T: Tensor, span: int) -> None:
        self.layout, self.time_T, self.span = layout, time_T, span

    @cached_property
    def masks(self) -> list[Tensor]:
        """For each group of the layout [b, 1, L, L]."""
        masks = []
        for (time_bL1,) in self.layout.grouped(self.layout.take(self.time_T.unsqueeze(1), 1), 1):
            past_bLL = time_bL1 - time_bL1.transpose(1, 2) <= self.span
            masks.append(past_bLL.tril_().unsqueeze(1))
        return masks

    @cached_property
    def blocks(self) -> BlockMask:
        """For flex_attention over all tokens; nothing of it is read on the host."""
        from torch.nn.attention.flex_attention import BlockMask

        tokens, device = len(self.time_T), self.time_T.device
        begins, time_T, span = self.layout.begins, self.time_T, self.span
        place_T = torch.arange(tokens, device=device)
        sequence_T = torch.bucketize(place_T, begins[1:], right=True)

        def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (sequence_T[i] == sequence_T[j]) & (i >= j) & (time_T[i] - time_T[j] <= span)

        first_n = begins[sequence_T[::BLOCK]] // BLOCK
        nth_n = torch.arange(len(first_n), device=device)
        count_n = nth_n - first_n + 1
        block_nn = (first_n[:, None] + nth_n).clamp(max=len(nth_n) - 1)
        parts = count_n[None, None].int(), block_nn[None, None].int()
        return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))

    def attend(self, qkv_TX: Tensor, heads: int) -> Tensor:
        """Attention of all tokens, [T, 3 D] -> [T, D]. On a CPU it is for tests: it has no gradient, and the
        scores of all pairs of tokens are in memory."""
        from torch.nn.attention.flex_attention import flex_attention

        q_hTk, k_hTk, v_hTk = qkv_TX.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        attention = _compiled() if qkv_TX.is_cuda else flex_attention
        out_hTk: Tensor = attention(q_hTk[None], k_hTk[None], v_hTk[None], block_mask=self.blocks)[0]
        return out_hTk.transpose(0, 1).flatten(1)


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
