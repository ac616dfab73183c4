"""What the configs of models made of Transformers have in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from ingest.data.schema import DataConfig
from ingest.durations import parse_duration
from trainer.models.registry import NeuralConfig
from trainer.train_config import TrainConfig


class TransformerConfig(NeuralConfig):
    """A model with attention."""

    heads: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    expansion: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in model dimensions."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if train.tables.dimension % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide train.tables.dimension, {train.tables.dimension}")


class WindowConfig(TransformerConfig):
    """A model with the short-term encoder and two Transformers."""

    has_heads: ClassVar[bool] = True
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

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        positions = data.time_unit == "position"
        if positions != isinstance(self.window, int):
            takes = "a number of positions such as 20" if positions else "a span of time such as 7d"
            raise ValueError(f"window: with this data.time_unit it takes {takes}, got {self.window!r}")
