"""LSTM (Hochreiter and Schmidhuber, 1997): the GRU model with long short-term memory in place of gated units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer.models.base import RecurrentConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest


@register
class LSTMConfig(RecurrentConfig):
    kind: Literal["lstm"] = "lstm"

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        from torch import nn

        from trainer.recurrent import RecurrentNetwork

        return RecurrentNetwork(nn.LSTM, self, manifest, dimension)
