"""TransAct (Xia et al., arXiv 2306.00248), which ranks ads and pins at Pinterest, adapted to predicting the next item.

    T  tokens     D  dimension     K  newest rows     B  sequences

Each interaction's features and item side by side go through a Transformer without places; the output rows of the K
newest interactions, newest first, and the maximum over all rows are joined to the query. In training a random window of
time hides the newest actions, so that the model does not follow the last one alone.

What is adapted: the original fuses the candidate into every row, which can not score a whole catalogue; that is left
out. It ranks at one moment, here every place of a sequence is asked for what comes next: so attention is causal, and
what a window hides is seen by no row before it. What is known of the request is added to the query and part of no row:
a window hides actions, and the newest row that it leaves is not the one before the request. The window reaches back
from the request where the model knows that, else from the last interaction, which each window then hides; so a share of
the sequences has none.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ingest.data.schema import DataConfig
from ingest.durations import parse_duration
from trainer.models.base import Span, TaughtConfig, TransformerConfig, check_unit
from trainer.models.registry import register
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest

MASKED_SHARE = 0.5


@register
class TransActConfig(TaughtConfig, TransformerConfig):
    kind: Literal["transact"] = "transact"
    times: bool = False
    layers: int = Field(default=2, ge=1)
    """Blocks of the encoder."""
    newest: int = Field(default=10, ge=1)
    """K: how many of the newest rows are read one by one."""
    mask: Span = "24h"
    """The longest window that hides the newest actions in training: a span of time, or a number of positions; null for
    no window. Each sequence has one of its own, drawn evenly."""
    masked_share: float = Field(default=MASKED_SHARE, gt=0, le=1)
    """Of the sequences of a training step, those that have a window."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if self.mask is not None:
            check_unit("mask", self.mask, data)
        elif self.masked_share != MASKED_SHARE:
            raise ValueError(f"masked_share: there is no mask, got {self.masked_share}")

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension)


@cache
def network_class() -> type[nn.Module]:
    import torch
    from torch import Tensor, nn

    from trainer.device import sent
    from trainer.layers import Inputs, Transformer
    from trainer.one_encoder import OneEncoder

    class TransAct(OneEncoder):
        reads_request = True

        def __init__(self, config: TransActConfig, manifest: Manifest, dimension: int) -> None:
            super().__init__(config, manifest, dimension, None, config.times)
            self.newest, self.masked_share = config.newest, config.masked_share
            self.span = 0 if config.mask is None else parse_duration(config.mask)
            self.encoder = Transformer(dimension, config.layers, config)
            self.out = nn.Linear((config.newest + 1) * dimension, dimension)

        def encode(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
            row_TD = self.encoder(x_TD, inputs.layout)
            highest_TD = self.highest(row_TD, inputs)
            count_T = self.seen(inputs, self.windows(inputs))
            last_T = torch.arange(len(x_TD), device=x_TD.device) - inputs.position_T + count_T - 1
            nth_K = torch.arange(self.newest, device=x_TD.device)
            nothing = len(x_TD)  # the row of zeros
            place_TK = (last_T[:, None] - nth_K).masked_fill(nth_K >= count_T[:, None], nothing)
            newest_TX = with_zeros(row_TD)[place_TK].flatten(1)
            pooled_TD = with_zeros(highest_TD)[last_T.masked_fill(count_T == 0, nothing)]
            query_TD: Tensor = self.out(torch.cat([newest_TX, pooled_TD], dim=1))
            return query_TD if inputs.request_TD is None else query_TD + inputs.request_TD

        def highest(self, row_TD: Tensor, inputs: Inputs) -> Tensor:
            """The maximum of each token's row and of those before it in its sequence, [T, D]."""
            groups = inputs.layout.grouped(inputs.layout.take(row_TD, 1), 1)
            found = [row_1bLD.cummax(dim=2).values.flatten(0, 2) for row_1bLD in groups]
            return inputs.layout.give_back(torch.cat(found), 1)

        def windows(self, inputs: Inputs) -> Tensor:
            """How far back each sequence's window reaches, [B]; 0 outside of training."""
            lengths_B = inputs.layout.lengths_B
            if not self.training or not self.span:
                return torch.zeros_like(lengths_B)
            drawn_2B = torch.rand(2, len(lengths_B))
            return (drawn_2B[0] * self.span).ceil().long() * (drawn_2B[1] < self.masked_share)

        def seen(self, inputs: Inputs, window_B: Tensor) -> Tensor:
            """How many of its sequence's interactions each token sees, the oldest ones: all up to it, [T], but those of
            less than the window before what is known."""
            lengths_B, time_T = inputs.layout.lengths_B, inputs.time_T
            sequence_B = torch.arange(len(lengths_B))
            sequence_T = sent(sequence_B.repeat_interleave(lengths_B), time_T.device)
            first = time_T.min()
            apart = time_T.max() - first + 2
            until_T = inputs.now_T - sent(window_B.repeat_interleave(lengths_B), time_T.device) - first
            until_T = until_T.clamp(min=-1).minimum(apart - 2)
            begins_T = sent((lengths_B.cumsum(0) - lengths_B).repeat_interleave(lengths_B), time_T.device)
            end_T = torch.searchsorted(sequence_T * apart + time_T - first, sequence_T * apart + until_T, right=True)
            return (end_T - begins_T).minimum(inputs.position_T + 1)

    def with_zeros(x_TD: Tensor) -> Tensor:
        return torch.nn.functional.pad(x_TD, (0, 0, 0, 1))

    return TransAct
