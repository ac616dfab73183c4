"""BERT4Rec (Sun et al., arXiv 1904.06690): a bidirectional Transformer that fills in hidden interactions.

    T  tokens     D  dimension     Q  targets     X  places of all sequences that the encoder sees

A sequence of n tokens has n + 1 places: the last is that of the interaction after it. In training the interactions that
are asked for (trainer/hidden.py) are hidden: their places have a learned vector for the item and all its metadata, and
see what comes before and after. Otherwise a target is asked for at the last place of the interactions before it alone,
as if it were the end of its sequence: nothing of the future, nor of the target, is ever seen. That costs a sequence for
each target, where a causal model ranks all targets of a user in one.

Places are counted from the last, so that the one that is ranked is the same in sequences of any length (ours). With the
loss that the config names and blocks that norm first, as the other Transformers here have them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ingest.data.schema import DataConfig
from ingest.features.feature import kind_of
from trainer.models.base import TaughtConfig, TransformerConfig
from trainer.models.registry import register
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest


PLACES_AT_ONCE = 65_536
"""Of the sequences that are ranked, about, beyond those of one target."""


@register
class BERT4RecConfig(TaughtConfig, TransformerConfig):
    kind: Literal["bert4rec"] = "bert4rec"
    features: bool = False
    times: bool = False
    intents: list[str] | None = []
    layers: int = Field(default=2, ge=1)
    """Blocks of the encoder."""
    hidden_share: float = Field(default=0.2, ge=0, lt=1)
    """The share of interactions that are hidden in an epoch, besides the last of each sequence."""

    @property
    def hides(self) -> float | None:
        return self.hidden_share

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if "history" in self.knows:
            raise ValueError(
                "knows: history needs a model with an answer at every place of the history; kind: bert4rec has one "
                "where it is asked alone"
            )
        telling = [f.name for f in data.features if f.of == "event" and not kind_of(f).columns(f)]
        if self.features and telling:
            raise ValueError(
                f"features: kind: bert4rec can not read {telling[0]!r}, which is made of the items before and so tells "
                "what is hidden there; take `features: false`"
            )

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ingest.arrays.jagged import cut
    from trainer.attention import Layout
    from trainer.device import sent
    from trainer.layers import Inputs, Transformer
    from trainer.one_encoder import OneEncoder

    class BERT4Rec(OneEncoder):
        def __init__(self, config: BERT4RecConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__(config, manifest, dimension, None, config.times)
            self.place = nn.Embedding(max_length + 1, dimension)
            self.hidden = nn.Parameter(torch.empty(dimension))
            for drawn in (self.place.weight, self.hidden):
                nn.init.normal_(drawn, std=0.02)
            self.encoder = Transformer(dimension, config.layers, config, causal=False)

        def encode(self, x_TD: Tensor, inputs: Inputs) -> Tensor:
            """The query where it is asked for, [T, D]; zeros elsewhere."""
            asked_Q = inputs.asked_Q
            assert asked_Q is not None
            query_TD = x_TD.new_zeros(x_TD.shape)
            if not self.training and not len(asked_Q):
                return query_TD
            if self.training:
                return self.answered(query_TD, x_TD, asked_Q, *filled_in(inputs))
            for part_Q in parts(inputs, asked_Q):
                query_TD = self.answered(query_TD, x_TD, part_Q, *ended_at(inputs, part_Q))
            return query_TD

        def answered(
            self, query_TD: Tensor, x_TD: Tensor, asked_Q: Tensor, length_B: Tensor, token_X: Tensor, at_Q: Tensor
        ) -> Tensor:
            """`query_TD` with those of the tokens `asked_Q`, which the encoder gives at the places `at_Q`."""
            length_X = sent(length_B.repeat_interleave(length_B), x_TD.device)
            begin_X = sent((length_B.cumsum(0) - length_B).repeat_interleave(length_B), x_TD.device)
            back_X = begin_X + length_X - 1 - torch.arange(len(length_X), device=x_TD.device)
            hidden_X1 = (back_X == 0).index_fill_(0, at_Q, True)[:, None]
            seen_XD = torch.where(hidden_X1, self.hidden.to(x_TD.dtype), x_TD.index_select(0, token_X))
            encoded_XD = self.encoder(seen_XD + self.place(back_X), Layout(length_B, x_TD.device))
            return query_TD.index_copy(0, asked_Q, encoded_XD.index_select(0, at_Q).to(x_TD.dtype))

    def filled_in(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences, each with one place more: their lengths, the token at each place (any one at the last), and
        the place of the interaction after each token that is asked."""
        asked_Q, length_B = inputs.asked_Q, inputs.layout.lengths_B
        assert asked_Q is not None
        device = asked_Q.device
        sequence_T = sent(torch.arange(len(length_B)).repeat_interleave(length_B), device)
        last_X = torch.zeros(int(length_B.sum()) + len(length_B), dtype=torch.int64)
        last_X[(length_B + 1).cumsum(0) - 1] = 1
        token_X = torch.arange(len(last_X)) - last_X.cumsum(0)
        return length_B + 1, sent(token_X, device), asked_Q + sequence_T[asked_Q] + 1

    def parts(inputs: Inputs, asked_Q: Tensor) -> list[Tensor]:
        """The tokens that are asked in parts whose sequences have some `PLACES_AT_ONCE` places together."""
        bounds = cut((inputs.position_T[asked_Q] + 2).cpu().numpy(), PLACES_AT_ONCE)
        return list(asked_Q.split(np.diff(bounds).tolist()))

    def ended_at(inputs: Inputs, asked_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a sequence for each token that is asked, which ends with the place after it; by length."""
        length_Q = inputs.position_T[asked_Q] + 2
        order_Q = length_Q.argsort(stable=True)
        length_B = length_Q[order_Q]
        end_B = length_B.cumsum(0)
        nth_X = torch.arange(int(end_B[-1]), device=end_B.device) - (end_B - length_B).repeat_interleave(length_B)
        begin_B = asked_Q[order_Q] + 2 - length_B
        last_X = length_B.repeat_interleave(length_B) - 1
        token_X = begin_B.repeat_interleave(length_B) + torch.minimum(nth_X, last_X - 1)
        at_Q = torch.empty_like(end_B).index_copy_(0, order_Q, end_B - 1)
        return length_B.cpu(), token_X, at_Q

    return BERT4Rec
