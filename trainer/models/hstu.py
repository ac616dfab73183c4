"""HSTU (arXiv 2402.17152): attention without a softmax, of scores with biases of relative places and times, and gated.

    T  tokens     D  model dimension     h  heads     k  dimension of a head     b, L  as in trainer/attention.py
    N  the longest sequence that a batch may have

    U, V, Q, K = silu(norm(X) W)
    A_ij       = silu(Q_i . K_j + p[i - j] + t[bucket of now_i - T_j]) / N         for j <= i
    X          + linear(norm(A V) * U)

now_i is the time of interaction i; of a model that knows the request, that of the request after it, as in the authors'
code. Scores are dot products after a final norm, as those of the other models here, where the authors' are cosines over
a temperature (the key `temperature`). Padded, the attention of all heads is in memory: T x L x h numbers a layer, and
as much for the gradient. On a GPU in half precision it is that of trainer/pointwise.py, jagged and without these.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.models.base import AttentionConfig, TaughtConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest

BUCKETS, LOG_STEP = 129, 0.301
"""Of the times: each bucket begins at 1.35 times the seconds of the one before."""


@register
class HSTUConfig(TaughtConfig, AttentionConfig):
    """`times`: the bias of relative times, in place of an encoding of the time at the input."""

    kind: Literal["hstu"] = "hstu"
    layers: int = Field(default=2, ge=1)
    """Blocks of the encoder."""

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from trainer.attention import Layout
    from trainer.layers import Dropout, Inputs
    from trainer.one_encoder import OneEncoder

    class Gaps:
        """The time from each token until what another one knows. `unit`: how much of the log's time is one second, or
        one position."""

        def __init__(self, inputs: Inputs, unit: int) -> None:
            self.layout, self.now_T, self.time_T, self.unit = inputs.layout, inputs.now_T, inputs.time_T, unit

        @cached_property
        def buckets(self) -> list[Tensor]:
            """For each group those of the gaps from each place (last) to each place: [b, L, L]."""
            found = []
            times_T2 = torch.stack([self.now_T, self.time_T], dim=1)
            for (times_bL2,) in self.layout.grouped(self.layout.take(times_T2, 1), 1):
                now_bL, time_bL = times_bL2.unbind(2)
                seconds_bLL = (now_bL[:, :, None] - time_bL[:, None]).abs() // self.unit
                found.append((seconds_bLL.clamp(min=1).log() / LOG_STEP).long().clamp_(max=BUCKETS - 1))
            return found

    class Block(nn.Module):
        """[T, D] -> [T, D]."""

        def __init__(self, dimension: int, heads: int, dropout: float, longest: int, times: bool) -> None:
            super().__init__()
            self.heads, self.longest = heads, longest
            self.norm = nn.LayerNorm(dimension)
            self.uvqk = nn.Linear(dimension, 4 * dimension, bias=False)
            self.place = nn.Parameter(0.02 * torch.randn(longest))
            self.gap = nn.Parameter(0.02 * torch.randn(BUCKETS)) if times else None
            self.attended_norm = nn.LayerNorm(dimension)
            self.dropout = Dropout(dropout)
            self.out = nn.Linear(dimension, dimension)

        def forward(self, x_TD: Tensor, layout: Layout, gaps: Gaps | None) -> Tensor:
            dimension = x_TD.shape[1]
            u_TD, vqk_TX = F.silu(self.uvqk(self.norm(x_TD))).split([dimension, 3 * dimension], dim=1)
            jagged = vqk_TX.is_cuda and vqk_TX.dtype in (torch.bfloat16, torch.float16)
            attended_TD = self.jagged(vqk_TX, layout, gaps) if jagged else self.padded(vqk_TX, layout, gaps)
            added_TD: Tensor = self.out(self.dropout(u_TD * self.attended_norm(attended_TD)))
            return x_TD + added_TD

        def padded(self, vqk_TX: Tensor, layout: Layout, gaps: Gaps | None) -> Tensor:
            """The attention, [T, 3 D] -> [T, D]."""
            parts, found = 3 * self.heads, []
            for number, vqk_xbLk in enumerate(layout.grouped(layout.take(vqk_TX, parts), parts)):
                v_hbLk, q_hbLk, k_hbLk = vqk_xbLk.unflatten(0, (3, self.heads))
                bias_bLL = self.bias(v_hbLk.shape[2], None if gaps is None else gaps.buckets[number])
                weight_hbLL = F.silu(q_hbLk @ k_hbLk.mT + bias_bLL).tril() / self.longest
                found.append((weight_hbLL @ v_hbLk).reshape(-1, v_hbLk.shape[3]))
            return layout.give_back(torch.cat(found), self.heads)

        def jagged(self, vqk_TX: Tensor, layout: Layout, gaps: Gaps | None) -> Tensor:
            """The same by a kernel for GPUs."""
            from trainer.pointwise import Times, pointwise_attention

            times = None
            if gaps is not None and self.gap is not None:
                times = Times(self.gap, gaps.now_T, gaps.time_T, gaps.unit, LOG_STEP)
            return pointwise_attention(vqk_TX, self.place, layout, self.heads, times)

        def bias(self, length: int, bucket_bLL: Tensor | None) -> Tensor:
            """Of every place (last) as seen from every place, [b, L, L] or [L, L]; any one for those after it."""
            place_L = torch.arange(length, device=self.place.device)
            back_LL = (place_L[:, None] - place_L).clamp_(min=0)
            bias_LL = self.place.index_select(0, back_LL.flatten()).view(length, length)
            if self.gap is None or bucket_bLL is None:
                return bias_LL
            return bias_LL + self.gap.index_select(0, bucket_bLL.flatten()).view(bucket_bLL.shape)

    class Encoder(nn.Module):
        """[T, D] -> [T, D]. `unit`: as that of `Gaps`; None without times."""

        def __init__(self, config: HSTUConfig, dimension: int, longest: int, unit: int | None) -> None:
            super().__init__()
            self.unit = unit
            self.blocks = nn.ModuleList(
                Block(dimension, config.heads, config.dropout, longest, config.times) for _ in range(config.layers)
            )
            self.norm = nn.LayerNorm(dimension)

        def forward(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
            gaps = None if self.unit is None else Gaps(inputs, self.unit)
            for block in self.blocks:
                x_TD = block(x_TD, inputs.layout, gaps)
            out: Tensor = self.norm(x_TD)
            return out

    class HSTU(OneEncoder):
        def __init__(self, config: HSTUConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__(config, manifest, dimension, max_length, times=False)
            unit = 1000 if manifest.time_unit == "time" else 1
            self.encoder = Encoder(config, dimension, max_length, unit if config.times else None)

    return HSTU
