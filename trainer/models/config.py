"""The neural models' configs. Apart from the models, so that reading a config does not import torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ingest.durations import parse_duration
from ingest.settings import Settings


class EncoderConfig(Settings):
    """What the neural models have in common."""

    reads_features: ClassVar[bool] = True
    """Whether the model sees more than items, places and times: columns that it does not see are not read."""

    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    expansion: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in model dimensions."""
    train: dict[str, Any] = {}
    """Keys of the `train` section that are other for this model."""


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


class IntentRecConfig(WindowConfig):
    kind: Literal["intentrec"] = "intentrec"
    intent_weight: float = Field(default=1.0, ge=0)
    """lambda: the weight of the sum of the intents' losses."""


class DeepConfig(WindowConfig):
    kind: Literal["deep"] = "deep"


class SASRecConfig(EncoderConfig):
    reads_features: ClassVar[bool] = False
    kind: Literal["sasrec"] = "sasrec"
    layers: int = Field(default=2, ge=1)


NeuralConfig = IntentRecConfig | DeepConfig | SASRecConfig
