"""SASRec (Kang and McAuley, arXiv 1808.09781): one causal Transformer over item ids and learned places.

With the loss that the config names (sampled or full softmax) instead of the paper's one BCE negative; see
arXiv 2309.07602 for what that is worth.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.models.base import TransformerConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest
    from trainer.layers import Inputs, Output


@register
class SASRecConfig(TransformerConfig):
    reads_features: ClassVar[bool] = False
    kind: Literal["sasrec"] = "sasrec"
    layers: int = Field(default=2, ge=1)

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    import torch
    from torch import nn

    from trainer.layers import Dropout, Output, Positions, Transformer

    class SASRec(nn.Module):
        """Items and their places only: no features, no times."""

        def __init__(self, config: SASRecConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__()
            self.scale = math.sqrt(dimension)
            self.positions = Positions(manifest, dimension, max_length, timestamp=False)
            self.dropout = Dropout(config.dropout)
            self.encoder = Transformer(dimension, config.layers, config.heads, config.dropout, config.expansion)

        def forward(self, inputs: Inputs) -> Output:
            (place_TD,) = self.positions(inputs)
            x_TD = self.dropout(torch.add(place_TD, inputs.vectors["item"], alpha=self.scale))
            return Output(self.encoder(x_TD, inputs.layout))

    return SASRec
