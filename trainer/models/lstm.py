"""LSTM (Hochreiter and Schmidhuber, 1997): the GRU model with long short-term memory in place of gated units."""

from __future__ import annotations

from functools import cache
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
        return network_class()(self, manifest, dimension)


@cache
def network_class() -> type[nn.Module]:
    from torch import nn

    from trainer.one_encoder import OneEncoder
    from trainer.recurrent import Recurrent

    class LSTM(OneEncoder):
        def __init__(self, config: LSTMConfig, manifest: Manifest, dimension: int) -> None:
            super().__init__(config, manifest, dimension, None, config.times)
            width = config.hidden or dimension
            self.encoder = Recurrent(nn.LSTM, dimension, width, config.layers, config.dropout)

    return LSTM
