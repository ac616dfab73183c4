"""The small protocol behind which the neural models live: inputs of a batch in, a query for each token out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from trainer.layers import Inputs


@dataclass(frozen=True)
class Output:
    """What a model says at each token k of interaction k + 1."""

    query_TD: Tensor
    """Its dot product with a row of the item table is that item's score."""
    intents: dict[str, Tensor] = field(default_factory=dict)
    """For each intent the logits of its labels, [T, labels]: label l is vocabulary index l + 2."""
    attention_TM: Tensor | None = None
    """The weight of each of the M intents, in the order of `intents`; rows sum to 1."""


class Network(Protocol):
    """A neural model. It knows nothing of parallelism, tables or losses."""

    def __call__(self, inputs: Inputs) -> Output: ...
