"""Recurrent layers over jagged sequences: step by step, in each all sequences that are so long; nothing is padded.

T  tokens     D  model dimension     h  width of the state
S  steps: tokens of the longest sequence     B  sequences, sorted by length
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ingest.data.manifest import Manifest
from trainer.device import sent
from trainer.layers import Dropout, Inputs
from trainer.models.base import RecurrentConfig
from trainer.one_encoder import OneEncoder

Cell: TypeAlias = type[nn.GRU] | type[nn.LSTM]


def packing(lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens step by step, in each step the longest sequence first, [T]; and how many each step has, [S].

    `lengths_B` on the CPU, in rising order.
    """
    begin_B, longest = lengths_B.cumsum(0) - lengths_B, int(lengths_B[-1])
    count_S = len(lengths_B) - torch.searchsorted(lengths_B, torch.arange(longest), right=True)
    nth_T = torch.arange(int(lengths_B.sum())) - (count_S.cumsum(0) - count_S).repeat_interleave(count_S)
    token_T = begin_B[len(lengths_B) - 1 - nth_T] + torch.arange(longest).repeat_interleave(count_S)
    return token_T, count_S


class Recurrent(nn.Module):
    """Layers of `cell` and a linear layer from the state to the query: [T, D] -> [T, D]."""

    def __init__(self, cell: Cell, dimension: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [dimension, *[width] * layers]
        self.layers = nn.ModuleList(cell(before, width) for before in sizes[:-1])
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, dimension)

    def forward(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
        token_T, count_S = packing(inputs.layout.lengths_B)
        token_T = sent(token_T, x_TD.device)
        state_Th = x_TD.index_select(0, token_T)
        for number, layer in enumerate(self.layers):
            if number:
                state_Th = self.dropout(state_Th)
            state_Th = layer(PackedSequence(state_Th, count_S))[0].data
        query_TD: Tensor = self.out(torch.empty_like(state_Th).index_copy(0, token_T, state_Th))
        return query_TD


class RecurrentNetwork(OneEncoder):
    """F -> layers of `cell` -> query."""

    def __init__(self, cell: Cell, config: RecurrentConfig, manifest: Manifest, dimension: int) -> None:
        super().__init__(config, manifest, dimension, None, config.times)
        self.encoder = Recurrent(cell, dimension, config.hidden or dimension, config.layers, config.dropout)
