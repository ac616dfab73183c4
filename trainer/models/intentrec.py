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

from ingest.data.schema import DataConfig
from trainer.models.base import TaughtConfig, WindowConfig
from trainer.models.registry import register
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.data.manifest import Manifest


@register
class IntentRecConfig(TaughtConfig, WindowConfig):
    kind: Literal["intentrec"] = "intentrec"

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if not data.intents:
            raise ValueError("kind: intentrec needs a feature with `intent: true` in data.features")
        if not self.has_heads:
            raise ValueError("intents: kind: intentrec needs one at least, got none")

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(self, manifest, dimension, max_length)


@cache
def network_class() -> type[nn.Module]:
    import torch
    from torch import nn

    from trainer.layers import IntentHeads, TwoEncoders

    class IntentRec(TwoEncoders):
        """IntentRec whole; see the head of this file. `InputError` where an intent has no label."""

        def make_bridge(self, manifest: Manifest, dimension: int) -> None:
            self.intent_heads = IntentHeads(manifest, dimension)
            self.labels = manifest.labels
            self.projections = nn.ModuleDict({f"intent_{n}": nn.Linear(m, dimension) for n, m in self.labels.items()})
            self.attention = nn.Linear(dimension, 1)

        def bridge(self, encoded_TD: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
            intents = self.intent_heads(encoded_TD)
            intent_embedding_TD, attention_TM = self.aggregate(intents)
            return intent_embedding_TD, intents, attention_TM

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
            score_L = (self.attention.weight @ weight_DL)[0].split(list(self.labels.values()))
            scores_TM = torch.stack([label @ score for label, score in zip(labels, score_L, strict=True)], dim=1)
            attention_TM = (scores_TM + self.attention(bias_MD).T).softmax(dim=1)
            weighted_TL = torch.cat([label * attention_TM[:, i, None] for i, label in enumerate(labels)], dim=1)
            return torch.addmm(attention_TM @ bias_MD, weighted_TL, weight_DL.T), attention_TM

    return IntentRec
