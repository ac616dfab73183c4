"""IntentRec (arXiv 2408.05353): predict the session's intents, aggregate the predictions, predict the item.

    T  tokens     D  model dimension     M  intents     V_i  labels of intent i

    S_k = Enc(F_j : T_k - T_j <= H)                    short-term interest
    E   = Transformer(linear(F (+) S))                 intent encoder
    p^i = softmax(FC_i(E))                             predicted intents
    Z   = sum_i softmax_i(FC_att(Proj_i(p^i))) Proj_i(p^i)
    query = Transformer(linear(F (+) S (+) Z))         item encoder

Z is built from the predictions and not from E, so the weights say what drives a session; the item loss flows through
them into the intent encoder.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ingest.data.schema import FIRST_VALUE, DataConfig
from ingest.errors import InputError
from trainer.models.base import WindowConfig
from trainer.models.registry import register
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.data.manifest import Manifest
    from trainer.layers import Inputs, Output


@register
class IntentRecConfig(WindowConfig):
    kind: Literal["intentrec"] = "intentrec"
    intent_weight: float = Field(default=1.0, ge=0)
    """lambda: the weight of the sum of the intents' losses."""

    @property
    def weight_of_intents(self) -> float:
        return self.intent_weight

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if not data.intents:
            raise ValueError("kind: intentrec needs a feature with `intent: true` in data.features")

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return _network()(self, manifest, dimension, max_length)


@cache
def _network() -> type[nn.Module]:
    import torch
    from torch import nn

    from trainer.layers import FeatureVector, Joined, Output, Positions, ShortTerm, Transformer, project, side_by_side

    class IntentRec(nn.Module):
        """IntentRec whole; see the head of this file. `InputError` where the data declare no intent."""

        def __init__(self, config: IntentRecConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
            super().__init__()
            labels = {feature.name: feature.size - FIRST_VALUE for feature in manifest.intents}
            if not labels:
                raise InputError("model intentrec needs at least one feature with `intent: true` in data.features")
            empty = [name for name, count in labels.items() if count < 1]
            if empty:
                raise InputError(f"intent {empty[0]!r} has no value at all in the training data")
            self.labels = list(labels.values())
            self.features = FeatureVector(manifest, dimension)
            self.positions = Positions(manifest, dimension, max_length, timestamp=True, encoders=3)
            width, heads, dropout = self.features.width, config.heads, config.dropout
            self.short_term = ShortTerm(width, dimension, heads, dropout, config.window_span)
            self.intent_input = Joined([width, dimension], dimension, dropout)
            self.intent_encoder = Transformer(dimension, config.intent_layers, heads, dropout, config.expansion)
            self.intent_heads = nn.ModuleDict({name: nn.Linear(dimension, count) for name, count in labels.items()})
            self.projections = nn.ModuleDict({name: nn.Linear(count, dimension) for name, count in labels.items()})
            self.attention = nn.Linear(dimension, 1)
            self.item_input = Joined([width, dimension, dimension], dimension, dropout, from_item=True)
            self.item_encoder = Transformer(dimension, config.item_layers, heads, dropout, config.expansion)

        def forward(self, inputs: Inputs) -> Output:
            window_TD, intent_TD, item_TD = self.positions(inputs)
            recent_F, intent_F, item_F = project(
                [self.short_term.join, self.intent_input, self.item_input], self.features(inputs), self.features.scale
            )
            short_TD = self.short_term(recent_F, window_TD, inputs)
            x_TD = self.intent_input(intent_F, short_TD) + intent_TD
            intents = self.predict_intents(self.intent_encoder(x_TD, inputs.layout))
            intent_embedding_TD, attention_TM = self.aggregate(intents)
            x_TD = self.item_input(item_F, short_TD, intent_embedding_TD) + item_TD
            return Output(self.item_encoder(x_TD, inputs.layout), intents, attention_TM)

        def predict_intents(self, encoded_TD: Tensor) -> dict[str, Tensor]:
            """The logits of every intent, as one matrix product."""
            logits = side_by_side(self.intent_heads.values(), encoded_TD).split(self.labels, dim=1)
            return dict(zip(self.intent_heads, logits, strict=True))

        def aggregate(self, intents: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            """Z and the weights of the intents from their logits: [T, D] and [T, M].

            With Proj_i(p) = P_i p + b_i, FC_att(z) = w z + c and the weights s_i, the sum over the intents is one
            product: a_i = (w P_i) p^i + w b_i + c, and
            Z = [s_1 p^1 (+) ... (+) s_M p^M] [P_1 ... P_M]^T + s [b_1 ... b_M]^T.
            """
            labels = [logits.softmax(dim=1) for logits in intents.values()]
            weight, bias = zip(
                *((projection.weight, projection.bias) for projection in self.projections.values()), strict=True
            )
            weight_DL, bias_MD = torch.cat(weight, dim=1), torch.stack(bias)
            score_L = (self.attention.weight @ weight_DL)[0].split(self.labels)
            scores_TM = torch.stack([label @ score for label, score in zip(labels, score_L, strict=True)], dim=1)
            attention_TM = (scores_TM + self.attention(bias_MD).T).softmax(dim=1)
            weighted_TL = torch.cat([label * attention_TM[:, i, None] for i, label in enumerate(labels)], dim=1)
            return torch.addmm(attention_TM @ bias_MD, weighted_TL, weight_DL.T), attention_TM

    return IntentRec
