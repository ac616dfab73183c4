"""SASRec (Kang and McAuley, arXiv 1808.09781): one causal Transformer over item ids and learned places.

With the loss that the config names (sampled or full softmax) instead of the paper's one BCE negative; see
arXiv 2309.07602 for what that is worth. It is the Transformer with other defaults: no features, no times, no intents.
"""

from __future__ import annotations

from typing import Literal

from trainer.models.registry import register
from trainer.models.transformer import TransformerModelConfig


@register
class SASRecConfig(TransformerModelConfig):
    kind: Literal["sasrec"] = "sasrec"  # type: ignore[assignment]
    features: bool = False
    times: bool = False
    intents: list[str] | None = []
