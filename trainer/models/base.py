"""What the configs of models have in common: what they read, which intents they predict, how large they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from ingest.data.schema import DataConfig
from ingest.durations import parse_duration
from trainer.models.registry import NeuralConfig
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from ingest.data.manifest import Manifest


def _of_time_or_positions(value: str | int | None) -> str | int | None:
    if value is not None and parse_duration(value) < 0:
        raise ValueError("takes a span of time such as 7d, or a number of positions")
    return value


Span: TypeAlias = Annotated[str | int | None, AfterValidator(_of_time_or_positions)]
"""A span of time, a number of positions, or none."""


class SequenceConfig(NeuralConfig):
    """A model of users' sequences."""

    features: bool = True
    """Whether its inputs have all metadata, or the items alone."""
    times: bool = True
    """Whether the encoding of the interactions' times is an input."""
    intents: list[str] | None = None
    """Those that it predicts; by default all of data.features."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the network's activations that are zero in a training step."""

    @field_validator("intents")
    @classmethod
    def _once(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"takes each intent once, got {', '.join(value)}")
        return value

    @property
    def reads_features(self) -> bool:
        return self.features

    def inputs(self, manifest: Manifest) -> list[str]:
        has = {"items": True, "features": self.features and bool(manifest.features), "times": self.times}
        return [name for name, read in has.items() if read]

    @property
    def has_heads(self) -> bool:
        return self.intents != []

    def view(self, manifest: Manifest) -> Manifest:
        """Of the intents it predicts those that it names alone."""
        if self.intents is None:
            return manifest
        named = {feature.name: feature.intent and feature.name in self.intents for feature in manifest.features}
        seen = [feature.model_copy(update={"intent": named[feature.name]}) for feature in manifest.features]
        return manifest.model_copy(update={"features": seen})

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        declared = [feature.name for feature in data.features if feature.intent]
        if others := [name for name in self.intents or [] if name not in declared]:
            takes = ", ".join(declared) or "none"
            raise ValueError(f"intents: takes those of data.features, {takes}; got {others[0]!r}")


class TaughtConfig(SequenceConfig):
    """A model whose heads have losses of their own."""

    intent_weight: float = Field(default=1.0, ge=0)
    """lambda: the weight of the sum of the intents' losses."""

    @property
    def weight_of_intents(self) -> float:
        return self.intent_weight

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        predicts = self.has_heads and any(feature.intent for feature in data.features)
        if not predicts and self.intent_weight != type(self).model_fields["intent_weight"].default:
            raise ValueError(f"intent_weight: there is no intent to weigh, got {self.intent_weight}")


class RecurrentConfig(TaughtConfig):
    """A model with recurrent layers."""

    layers: int = Field(default=1, ge=1)
    """Recurrent layers."""
    hidden: int | None = Field(default=None, ge=1)
    """Width of the state; by default that of the item table."""


class AttentionConfig(SequenceConfig):
    """A model with attention."""

    heads: int = Field(default=2, ge=1)
    """Of attention; they have to divide `train.tables.dimension`."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if train.tables.dimension % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide train.tables.dimension, {train.tables.dimension}")


class TransformerConfig(AttentionConfig):
    """A model with Transformer blocks."""

    expansion: int = Field(default=4, ge=1)
    """Width of the feed-forward layers, in model dimensions."""
    gated: bool = False
    """Whether its blocks are LiGR's, as in eSASRec: residuals are gated, feed-forward layers are SwiGLU."""


class WindowConfig(TransformerConfig):
    """A model with two Transformers and the short-term encoder."""

    window: Span = "7d"
    """H, how far back the short-term encoder sees: a span of time, or a number of positions; null for none of it."""
    intent_layers: int = Field(default=1, ge=1)
    """Blocks of the intent encoder."""
    item_layers: int = Field(default=1, ge=1)
    """Blocks of the item encoder."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        super().check(data, train)
        if self.window is not None:
            check_unit("window", self.window, data)


def check_unit(key: str, value: str | int, data: DataConfig) -> None:
    """`ValueError` where the value is no span of the log's own unit."""
    positions = data.time_unit == "position"
    if positions != isinstance(value, int):
        takes = "a number of positions such as 20" if positions else "a span of time such as 7d"
        raise ValueError(f"{key}: with this data.time_unit it takes {takes}, got {value!r}")
