"""Attention over jagged sequences, causal or not: padded only inside the kernel, and there only a little.

    T  tokens of the batch     D  model dimension     h  heads     k  dimension of a head
    b  sequences of a group    L  the longest of them     P  places of all groups: tokens and padding
    n  heads x sequences       m  blocks of `BLOCK` tokens

Sequences come sorted by length. They are cut into groups of similar length, each padded at the right to its longest;
a causal mask then keeps every real token from padding without a mask of its own. On a GPU in half precision the kernel
reads the jagged tokens as they are.

Dropout of the attention's weights is left out: no kernel that does not materialise them has it on CPU, where it made
the attention itself take two to three times as long.
"""

from __future__ import annotations

from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.device import sent

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MOST_PRODUCTS = 256
"""Tokens of a sequence up to which batched products beat the flash kernel on a CPU, whose threads it leaves idle."""
ROWS = 100
"""About how many tokens' scores are one product there: they see their block's tokens and the ones before it alone."""
BLOCK = 128
"""Tokens of a block of flex_attention."""


class Layout:
    """How a batch's tokens are padded for attention; made once a batch and used by every layer."""

    def __init__(self, lengths_B: Tensor, device: torch.device | None = None, padding: float = 0.1) -> None:
        """`lengths_B` on the CPU, in rising order. Up to the share `padding` of all places may be empty."""
        self.lengths_B, self.device = lengths_B, device or lengths_B.device
        self.groups = _groups(lengths_B.tolist(), padding)
        """Sequences and the longest of them, for each group."""
        self.sizes = [b * longest for b, longest in self.groups]
        begin_B = lengths_B.cumsum(0) - lengths_B
        sequences = torch.tensor([b for b, _ in self.groups])
        padded_B = torch.tensor([longest for _, longest in self.groups]).repeat_interleave(sequences)
        nth_P = torch.arange(sum(self.sizes)) - (padded_B.cumsum(0) - padded_B).repeat_interleave(padded_B)
        length_P = lengths_B.repeat_interleave(padded_B)
        self.source_P = begin_B.repeat_interleave(padded_B) + torch.minimum(nth_P, length_P - 1)
        """The token that stands at each place, on the CPU; padding repeats the last of its sequence."""
        self.place_T = torch.nonzero(nth_P < length_P)[:, 0]
        self._pieces: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def begins(self) -> Tensor:
        """Where each sequence begins, and the last ends, as the jagged kernels want it."""
        return sent(F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32), self.device)

    @property
    def longest(self) -> int:
        return self.groups[-1][1]

    @cached_property
    def padding_masks(self) -> list[Tensor]:
        """For each group the [b, 1, 1, L] mask of its tokens, without padding."""
        real_P = torch.zeros(len(self.source_P), dtype=torch.bool).index_fill_(0, self.place_T, True)
        parts = sent(real_P, self.device).split(self.sizes)
        return [part.view(b, 1, 1, longest) for part, (b, longest) in zip(parts, self.groups, strict=True)]

    def take(self, x_TX: Tensor, parts: int) -> Tensor:
        """The `parts` pieces of each token, each of width k: group after group, in it piece after piece: [P parts, k].

        Padding and the change of order are one pass.
        """
        return x_TX.reshape(len(x_TX) * parts, -1).index_select(0, self._places(parts)[0])

    def give_back(self, x_Rk: Tensor, parts: int) -> Tensor:
        """The real tokens with their pieces side by side: what `take` was given, [T, parts k]."""
        return x_Rk.index_select(0, self._places(parts)[1]).view(len(self.place_T), -1)

    def scatter(self, x_TX: Tensor, parts: int) -> Tensor:
        """As `take`, with zeros for padding: the gradient of `give_back`."""
        x_Nk = x_TX.reshape(len(x_TX) * parts, -1)
        zeros_Rk = x_Nk.new_zeros(len(self.source_P) * parts, x_Nk.shape[1])
        return zeros_Rk.index_copy_(0, self._places(parts)[1], x_Nk)

    def grouped(self, x_Rk: Tensor, parts: int) -> list[Tensor]:
        """Views of each group's pieces, [parts, b, L, k]."""
        found = x_Rk.split([size * parts for size in self.sizes])
        return [part.view(parts, b, longest, -1) for part, (b, longest) in zip(found, self.groups, strict=True)]

    def _places(self, parts: int) -> tuple[Tensor, Tensor]:
        """For each place of `take` the piece there, numbered token by token; and the place of each piece."""
        if parts not in self._pieces:
            part = torch.arange(parts)
            sizes = torch.tensor(self.sizes)
            sources = self.source_P.split(self.sizes)
            piece_R = torch.cat([(source * parts + part[:, None]).flatten() for source in sources])
            size_T = sizes.repeat_interleave(sizes)[self.place_T]
            begin_T = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)[self.place_T]
            place_TX = (begin_T * (parts - 1) + self.place_T)[:, None] + size_T[:, None] * part
            self._pieces[parts] = sent(piece_R, self.device), sent(place_TX.flatten(), self.device)
        return self._pieces[parts]


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
    return _joined(groups, sum(lengths), padding)


def _joined(groups: list[tuple[int, int]], tokens: int, padding: float) -> list[tuple[int, int]]:
    """Neighbours joined, where it costs the fewest places, as long as the share of all padding stays within `padding`.

    Each group costs an attention some twenty operations, however small it is.
    """
    places = sum(b * longest for b, longest in groups)
    while len(groups) > 1:
        costs = [b * (after - longest) for (b, longest), (_, after) in pairwise(groups)]
        least = min(costs)
        if places + least - tokens > padding * (places + least):
            break
        at, places = costs.index(least), places + least
        groups[at : at + 2] = [(groups[at][0] + groups[at + 1][0], groups[at + 1][1])]
    return groups


class _PaddedAttention(torch.autograd.Function):
    """Attention of every group, [T, 3 D] -> [T, D]; each gradient is written once, to its place.

    If it is not `causal`, `masks` hide what is not seen, padding too.

    Padding needs no care in the backward pass: no real token sees it, and what it sees itself is dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_TX: Tensor, layout: Layout, heads: int, masks: list[Tensor] | None, causal: bool
    ) -> Tensor:
        qkv_Rk = layout.take(qkv_TX, 3 * heads)
        out_Rk = qkv_Rk.new_empty(len(qkv_Rk) // 3, qkv_Rk.shape[1])
        ctx.layout, ctx.heads, ctx.groups = layout, heads, []
        groups = zip(layout.grouped(qkv_Rk, 3 * heads), layout.grouped(out_Rk, heads), strict=True)
        for number, (qkv_xbLk, out_hbLk) in enumerate(groups):
            kind = _Products if causal and _takes_products(qkv_xbLk) else _Kernel
            mask = None if masks is None else masks[number]
            ctx.groups.append(kind(qkv_xbLk.unflatten(0, (3, heads)), out_hbLk, mask))
        return layout.give_back(out_Rk, heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        layout, heads = ctx.layout, ctx.heads
        grad_Rk = layout.scatter(gradients[0], heads)
        found_Rk = grad_Rk.new_empty(3 * len(grad_Rk), grad_Rk.shape[1])
        groups = zip(ctx.groups, layout.grouped(grad_Rk, heads), layout.grouped(found_Rk, 3 * heads), strict=True)
        for group, grad_hbLk, found_xbLk in groups:
            group.write_gradients(grad_hbLk, found_xbLk.unflatten(0, (3, heads)))
        ctx.groups = []
        return layout.give_back(found_Rk, 3 * heads), None, None, None, None


def _takes_products(x_xbLk: Tensor) -> bool:
    return x_xbLk.is_cpu and x_xbLk.shape[2] <= MOST_PRODUCTS and x_xbLk.dtype in (torch.float32, torch.float64)


class _Kernel:
    """One group through scaled_dot_product_attention."""

    def __init__(self, qkv_3hbLk: Tensor, out_hbLk: Tensor, mask: Tensor | None) -> None:
        self.qkv = [part.transpose(0, 1).detach().requires_grad_() for part in qkv_3hbLk]
        q_bhLk, k_bhLk, v_bhLk = self.qkv
        with torch.enable_grad():
            self.attended = F.scaled_dot_product_attention(
                q_bhLk, k_bhLk, v_bhLk, attn_mask=mask, is_causal=mask is None
            )
        out_hbLk.copy_(self.attended.detach().transpose(0, 1))

    def write_gradients(self, grad_hbLk: Tensor, found_3hbLk: Tensor) -> None:
        gradients = torch.autograd.grad(self.attended, self.qkv, grad_hbLk.transpose(0, 1))
        for found_hbLk, gradient_bhLk in zip(found_3hbLk, gradients, strict=True):
            found_hbLk.copy_(gradient_bhLk.transpose(0, 1))


class _Products:
    """One group of short sequences on a CPU as batched matrix products, block by block of rows, with the scores kept.

    r: tokens of a block, whose last is token c - 1 of the sequence.
    """

    def __init__(self, qkv_3hbLk: Tensor, out_hbLk: Tensor, mask: Tensor | None) -> None:
        heads, b, L, k = out_hbLk.shape
        self.qkv_3nLk, out_nLk = qkv_3hbLk.flatten(1, 2), out_hbLk.flatten(0, 1)
        q_nLk, k_nLk, v_nLk = self.qkv_3nLk
        self.scale = k**-0.5
        rows = -(-L // max(1, round(L / ROWS)))
        self.blocks = [slice(begin, min(begin + rows, L)) for begin in range(0, L, rows)]
        self.weights: list[Tensor] = []
        future_LL = torch.full((L, L), -torch.inf, dtype=q_nLk.dtype).triu(1)
        for block in self.blocks:
            seen = slice(0, block.stop)
            scores_nrc = torch.baddbmm(future_LL[block, seen], q_nLk[:, block], k_nLk[:, seen].mT, alpha=self.scale)
            if mask is not None:
                scores_nrc.view(heads, b, *scores_nrc.shape[1:]).masked_fill_(~mask[:, 0, block, seen], -torch.inf)
            self.weights.append(scores_nrc.softmax(dim=2))
            _put(out_nLk[:, block], self.weights[-1], v_nLk[:, seen])

    def write_gradients(self, grad_hbLk: Tensor, found_3hbLk: Tensor) -> None:
        q_nLk, k_nLk, v_nLk = self.qkv_3nLk
        found_3nLk, grad_nLk = found_3hbLk.flatten(1, 2), grad_hbLk.flatten(0, 1)
        grad_q_nLk, grad_k_nLk, grad_v_nLk = found_3nLk
        for block, weights_nrc in zip(reversed(self.blocks), reversed(self.weights), strict=True):
            seen, add = slice(0, block.stop), block.stop < q_nLk.shape[1]
            grad_weights_nrc = torch.bmm(grad_nLk[:, block], v_nLk[:, seen].mT)
            grad_nrc = torch._softmax_backward_data(grad_weights_nrc, weights_nrc, 2, grad_nLk.dtype)
            _put(grad_q_nLk[:, block], grad_nrc, k_nLk[:, seen])
            _put(grad_k_nLk[:, seen], grad_nrc.mT, q_nLk[:, block], add)
            _put(grad_v_nLk[:, seen], weights_nrc.mT, grad_nLk[:, block], add)
        found_3nLk[:2].mul_(self.scale)


def _put(out_nak: Tensor, left_nac: Tensor, right_nck: Tensor, add: bool = False) -> None:
    """The product into its place, or added to what is there; torch writes to a part only item by item."""
    if add:
        out_nak += torch.bmm(left_nac, right_nck)
    elif out_nak.is_contiguous():
        torch.bmm(left_nac, right_nck, out=out_nak)
    else:
        out_nak.copy_(torch.bmm(left_nac, right_nck))


class Window:
    """Token i sees j of its own sequence where j <= i and time_i - time_j <= `span`, in the unit of `time_T`.

    Varlen kernels have windows of places alone, so on a GPU it is flex_attention over the jagged tokens: of a row of
    blocks it works on those from its first sequence's beginning on.
    """

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

        first_m = begins[sequence_T[::BLOCK]] // BLOCK
        nth_m = torch.arange(len(first_m), device=device)
        count_m = nth_m - first_m + 1
        block_mm = (first_m[:, None] + nth_m).clamp(max=len(nth_m) - 1)
        parts = count_m[None, None].int(), block_mm[None, None].int()
        return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))

    def attend(self, qkv_TX: Tensor, heads: int) -> Tensor:
        """Attention of all tokens, [T, 3 D] -> [T, D]. On a CPU it is for tests: it is not compiled, so
        the scores of all pairs of tokens are in memory."""
        from torch.nn.attention.flex_attention import flex_attention

        q_hTk, k_hTk, v_hTk = qkv_TX.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        attention = _compiled() if qkv_TX.is_cuda else flex_attention
        out_hTk: Tensor = attention(q_hTk[None], k_hTk[None], v_hTk[None], block_mask=self.blocks)[0]
        return out_hTk.transpose(0, 1).flatten(1)


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


class Attention(nn.Module):
    """Multi-head self-attention over jagged tokens, [T, D] -> [T, D]: causal, and cut at a window of time where there
    is one; or of all tokens of a sequence to all."""

    def __init__(self, dimension: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.fits = dimension // heads >= 16 and dimension // heads % 8 == 0
        """Whether the kernels without padding take heads of this size."""
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, x_TD: Tensor, layout: Layout, window: Window | None = None) -> Tensor:
        qkv_TX = self.qkv(x_TD)
        if self.fits and qkv_TX.is_cuda and qkv_TX.dtype in (torch.bfloat16, torch.float16):
            attended_TD = self._jagged(qkv_TX, layout) if window is None else window.attend(qkv_TX, self.heads)
        else:
            masks = layout.padding_masks if not self.causal else None if window is None else window.masks
            attended_TD = _PaddedAttention.apply(qkv_TX, layout, self.heads, masks, self.causal)
        out: Tensor = self.out(attended_TD)
        return out

    def _jagged(self, qkv_TX: Tensor, layout: Layout) -> Tensor:
        """Flash attention over sequences of any lengths, nothing padded."""
        from torch.nn.attention.varlen import varlen_attn

        q_Thk, k_Thk, v_Thk = qkv_TX.unflatten(1, (3, self.heads, -1)).unbind(1)
        begins, longest, seen = layout.begins, layout.longest, (-1, 0 if self.causal else -1)
        out_Thk = varlen_attn(q_Thk, k_Thk, v_Thk, begins, begins, longest, longest, window_size=seen)
        assert isinstance(out_Thk, Tensor)
        return out_Thk.flatten(1)
