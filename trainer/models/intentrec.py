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

import torch
from torch import Tensor, nn

from ingest.errors import InputError
from ingest.manifest import Manifest
from ingest.schema import FIRST_VALUE
from trainer.layers import FeatureVector, Inputs, Joined, Positions, ShortTerm, Transformer
from trainer.models.base import Output
from trainer.models.config import IntentRecConfig


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
        self.features = FeatureVector(manifest, dimension)
        self.positions = nn.ModuleList(Positions(manifest, dimension, max_length, timestamp=True) for _ in range(3))
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
        features_TW = self.features(inputs)
        window_TD, intent_TD, item_TD = (positions(inputs) for positions in self.positions)
        short_TD = self.short_term(features_TW, window_TD, inputs)
        x_TD = self.intent_input(features_TW, short_TD) + intent_TD
        encoded_TD = self.intent_encoder(x_TD, inputs.layout)
        intents = {name: head(encoded_TD) for name, head in self.intent_heads.items()}
        intent_embedding_TD, attention_TM = self.aggregate(intents)
        x_TD = self.item_input(features_TW, short_TD, intent_embedding_TD) + item_TD
        return Output(self.item_encoder(x_TD, inputs.layout), intents, attention_TM)

    def aggregate(self, intents: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Z and the weights of the intents from their logits: [T, D] and [T, M]."""
        projected_TMD = torch.stack(
            [self.projections[name](logits.softmax(dim=1)) for name, logits in intents.items()], dim=1
        )
        attention_TM = self.attention(projected_TMD).squeeze(2).softmax(dim=1)
        return (attention_TM.unsqueeze(2) * projected_TMD).sum(dim=1), attention_TM
