"""Transformer: one causal encoder over items, metadata and times, which predicts the next item and its intents.

The paper's baseline of this name with `features: false`; IntentRec's ablations V0 (the next item alone) with
`intents: []`, and V1 (plain multi-task learning with a shared encoder) by default.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.models.base import TaughtConfig, TransformerConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.data.manifest import Manifest
    from trainer.layers import Inputs


@register
class TransformerModelConfig(TaughtConfig, TransformerConfig):
    kind: Literal["transformer"] = "transformer"
    layers: int = Field(default=2, ge=1)
    """Blocks of the encoder."""

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    from trainer.layers import Transformer
    from trainer.one_encoder import OneEncoder

    class OneTransformer(OneEncoder):
        def __init__(self, config: TransformerModelConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__(config, manifest, dimension, max_length, config.times)
            self.encoder = Transformer(dimension, config.layers, config)

        def encode(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
            encoded_TD: Tensor = self.encoder(x_TD, inputs.layout)
            return encoded_TD

    return OneTransformer
