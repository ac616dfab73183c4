"""The small protocol behind which the neural models live: inputs of a batch in, a query for each token out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pydantic import Field, field_validator
from torch import Tensor

from ingest.schema import parse_duration
from ingest.settings import Settings
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


class EncoderConfig(Settings):
    """What the neural models have in common."""

    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    expansion: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in model dimensions."""


class WindowConfig(EncoderConfig):
    """A model with the short-term encoder and two Transformers."""

    window: str | int = "7d"
    """H, how far back the short-term encoder sees: a span of time, or a number of positions."""
    intent_layers: int = Field(default=1, ge=1)
    item_layers: int = Field(default=1, ge=1)

    @field_validator("window")
    @classmethod
    def _span(cls, value: str | int) -> str | int:
        if parse_duration(value) < 0:
            raise ValueError("takes a span of time such as 7d, or a number of positions")
        return value

    @property
    def window_span(self) -> int:
        return parse_duration(self.window)
