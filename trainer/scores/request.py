"""The request: its time, and event features that are known before the item is chosen (`at_request: true`).

What is known of interaction k + 1 before its item is an input of token k. It is added to the item's vector, so every
model has it alike.

    T  tokens     D  dimension
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ingest.data.manifest import Manifest
from trainer.layers import Inputs, Waves
from trainer.scores.history import GAPS, time_bucket


class RequestEncoding(nn.Module):
    """The request's time by the calendar and by how long after token k it comes, and its features: [T, D].

    It begins as zero: a model's first outputs are those without it.
    """

    def __init__(self, manifest: Manifest, features: list[str], dimension: int) -> None:
        super().__init__()
        self.features, self.scale = features, math.sqrt(dimension)
        self.waves = Waves(manifest)
        self.linear = nn.Linear(self.waves.width, dimension)
        self.gap = nn.Embedding(GAPS, dimension)
        self.context = nn.Linear(len(features) * dimension, dimension, bias=False) if features else None
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: Inputs, request_time_T: Tensor, context: dict[str, Tensor]) -> Tensor:
        """`context`: the vectors of the request's features, [T, D] each."""
        gap_T = time_bucket(request_time_T - inputs.time_T)
        encoded_TD: Tensor = self.linear(self.waves(request_time_T)) + self.gap(gap_T)
        if self.context is not None:
            encoded_TD = encoded_TD + self.context(
                torch.cat([context[name] for name in self.features], dim=1) * self.scale
            )
        return encoded_TD / self.scale
