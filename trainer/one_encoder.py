"""What the models with one encoder share: their input, and the intents as further tasks beside the next item.

T  tokens     D  model dimension
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ingest.data.manifest import Manifest
from trainer.layers import (
    Dropout,
    FeatureVector,
    Inputs,
    IntentHeads,
    Joined,
    Output,
    Positions,
    TimestampEncoding,
    project,
)
from trainer.models.base import SequenceConfig


class Entry(nn.Module):
    """The encoder's input: the scaled item vector, or all of F joined, plus what tells the tokens' places and times.

    `places`: how many places have a learned vector; None for an encoder that knows the order by itself. `times`:
    whether the encoding of the time is added.
    """

    def __init__(
        self, config: SequenceConfig, manifest: Manifest, dimension: int, places: int | None, times: bool
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(dimension)
        self.positions = Positions(manifest, dimension, places, times) if places else None
        self.timestamp = TimestampEncoding(manifest, dimension) if times and not places else None
        self.features = FeatureVector(manifest.features, dimension) if config.features else None
        self.join = Joined([self.features.width], dimension, config.dropout, from_item=True) if self.features else None
        self.dropout = Dropout(config.dropout)

    def forward(self, inputs: Inputs) -> Tensor:
        """[T, D]."""
        encoded_TD = self.encoded(inputs)
        if self.features is None or self.join is None:
            item_TD = inputs.vectors["item"]
            return self.dropout(
                item_TD * self.scale if encoded_TD is None else torch.add(encoded_TD, item_TD, alpha=self.scale)
            )
        joined_TD: Tensor = self.join(*project([self.join], self.features(inputs), self.scale))
        return joined_TD if encoded_TD is None else joined_TD + encoded_TD

    def encoded(self, inputs: Inputs) -> Tensor | None:
        """The places and times, [T, D]."""
        if self.positions is not None:
            return self.positions(inputs)[0]
        return None if self.timestamp is None else self.timestamp(inputs)


class OneEncoder(nn.Module):
    """F -> encoder -> query, and of the same the logits of the intents: plain multi-task learning."""

    encoder: nn.Module
    """The model's own."""

    def __init__(
        self, config: SequenceConfig, manifest: Manifest, dimension: int, places: int | None, times: bool
    ) -> None:
        super().__init__()
        self.entry = Entry(config, manifest, dimension, places, times)
        self.heads = IntentHeads(manifest, dimension) if manifest.labels else None

    def encode(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
        """The query, [T, D]."""
        encoded_TD: Tensor = self.encoder(x_TD, inputs)
        return encoded_TD

    def forward(self, inputs: Inputs) -> Output:
        return self.output(self.encode(self.entry(inputs), inputs))

    def output(self, query_TD: Tensor) -> Output:
        return Output(query_TD, self.heads(query_TD) if self.heads else {})
