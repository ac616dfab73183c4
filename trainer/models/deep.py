"""Deep: the same short-term encoder, two Transformers and features as IntentRec, and no intents.

The control that tells the hierarchy of intents from mere depth: where IntentRec puts the aggregated intent
predictions Z, Deep puts a projection of the first Transformer's output through a bottleneck of the same size. Where its
scores know `intents`, it has IntentRec's heads, which act alike but are taught by the item loss alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from trainer.models.base import WindowConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.data.manifest import Manifest


@register
class DeepConfig(WindowConfig):
    kind: Literal["deep"] = "deep"

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    from torch import nn

    from trainer.layers import IntentHeads, TwoEncoders

    class Deep(TwoEncoders):
        """A network of IntentRec's depth and parameters without its intents."""

        def make_bridge(self, manifest: Manifest, dimension: int) -> None:
            narrow = sum(manifest.labels.values()) or dimension
            self.bottleneck = nn.Sequential(nn.Linear(dimension, narrow), nn.GELU(), nn.Linear(narrow, dimension))
            self.heads = IntentHeads(manifest, dimension) if self.acts else None

        def bridge(self, encoded_TD: Tensor) -> tuple[Any, ...]:
            return self.bottleneck(encoded_TD), {}, None, self.heads(encoded_TD) if self.heads else {}

    return Deep
