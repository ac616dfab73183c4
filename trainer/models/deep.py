"""Deep: the same short-term encoder, two Transformers and features as IntentRec, and no intents.

The control that tells the hierarchy of intents from mere depth: where IntentRec puts the aggregated intent
predictions Z, Deep puts a projection of the first Transformer's output through a bottleneck of the same size.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from ingest.data.schema import FIRST_VALUE
from trainer.models.base import WindowConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest
    from trainer.layers import Inputs, Output


@register
class DeepConfig(WindowConfig):
    kind: Literal["deep"] = "deep"

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return _network()(self, manifest, dimension, max_length)


@cache
def _network() -> type[nn.Module]:
    from torch import nn

    from trainer.layers import FeatureVector, Joined, Output, Positions, ShortTerm, Transformer, project

    class Deep(nn.Module):
        """A network of IntentRec's depth and parameters without its intents."""

        def __init__(self, config: DeepConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__()
            self.features = FeatureVector(manifest, dimension)
            self.positions = Positions(manifest, dimension, max_length, timestamp=True, encoders=3)
            width, heads, dropout = self.features.width, config.heads, config.dropout
            self.short_term = ShortTerm(width, dimension, heads, dropout, config.window_span)
            self.first_input = Joined([width, dimension], dimension, dropout)
            self.first_encoder = Transformer(dimension, config.intent_layers, heads, dropout, config.expansion)
            bottleneck = sum(feature.size - FIRST_VALUE for feature in manifest.intents) or dimension
            self.bridge = nn.Sequential(nn.Linear(dimension, bottleneck), nn.GELU(), nn.Linear(bottleneck, dimension))
            self.second_input = Joined([width, dimension, dimension], dimension, dropout, from_item=True)
            self.second_encoder = Transformer(dimension, config.item_layers, heads, dropout, config.expansion)

        def forward(self, inputs: Inputs) -> Output:
            window_TD, first_TD, second_TD = self.positions(inputs)
            recent_F, first_F, second_F = project(
                [self.short_term.join, self.first_input, self.second_input], self.features(inputs), self.features.scale
            )
            short_TD = self.short_term(recent_F, window_TD, inputs)
            x_TD = self.first_input(first_F, short_TD) + first_TD
            bridge_TD = self.bridge(self.first_encoder(x_TD, inputs.layout))
            x_TD = self.second_input(second_F, short_TD, bridge_TD) + second_TD
            return Output(self.second_encoder(x_TD, inputs.layout))

    return Deep
