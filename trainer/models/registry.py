"""The kinds of models, by name: `kind` in a config's `models` section is looked up here.

A new model is one file: a subclass of `NeuralConfig` under `@register`, whose `network` makes its nn.Module. The kinds
that come with the project are declared with the module that registers them, which is imported when a config asks for
the kind; a module of the user's own registers its kinds when it is imported. Importing a config imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, field_validator

from ingest.data.activity import of_buckets
from ingest.data.schema import DataConfig
from ingest.durations import parse_duration
from ingest.features.feature import dated, is_attribute
from ingest.registry import Registry
from ingest.settings import Kinded, Settings
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ingest.data.manifest import Manifest


Knowledge: TypeAlias = Literal["request", "history", "attributes", "recent", "transitions", "age", "intents"]


NEEDS: dict[str, tuple[Knowledge, ...]] = {
    "cold_share": ("attributes", "recent", "transitions"),
    "moments": ("recent", "transitions"),
}
"""Keys of a model that do nothing where it knows none of these."""


def _once(values: list[Knowledge]) -> list[Knowledge]:
    if len(set(values)) < len(values):
        raise ValueError(f"takes each part once, got {', '.join(values)}")
    return values


class MomentsConfig(Settings):
    """Which items a model has as candidates besides, by the moment of the request: one that knows `recent` what is
    taken lately and what is new, one that knows `transitions` what came lately after the user's last item."""

    step: str = "1h"
    """Time between two moments: a request knows what was taken before the last one."""
    items: int = Field(default=128, ge=1)
    """Of each moment."""
    by: str | None = None
    """A feature that is known at the request: what is taken is also counted by its values, so that a model that knows
    `recent` knows what is taken in the same place of an app, or by those who come the same way."""
    transitions: int = Field(default=64, ge=1)
    """The newest times that anyone took an item after the user's last one."""
    live: bool = True
    """Whether evaluating and recommending count the events of all splits up to the request, as a service that counts
    all the time; else the counts end where the split that is evaluated begins, or, if splits are no points in time,
    with the training data."""
    refresh: str | None = None
    """Time between two updates of all counts, in training as later: a request knows what came before the last one. One
    of them is where the test split begins, or, if splits are no points in time, in 1970. By default there is one at
    every request. A model that is not `live` learns so what counts say that have ended."""

    @field_validator("step", "refresh")
    @classmethod
    def _of_buckets(cls, value: str | None) -> str | None:
        return None if value is None else of_buckets(value)

    @property
    def milliseconds(self) -> int:
        """Of a step."""
        return parse_duration(self.step)

    def updated(self, time_Q: Tensor, begins: Mapping[Any, int]) -> Tensor:
        """The last update before each request, all in milliseconds. `begins`: of the splits that are points in time."""
        if self.refresh is None:
            return time_Q
        return time_Q - (time_Q - begins.get("test", 0)) % parse_duration(self.refresh)


class ModelConfig(Kinded):
    """One model's section; a subclass gives `kind` a default, by which it is registered."""

    @classmethod
    def class_of(cls, kind: str | None) -> type[ModelConfig]:
        return MODELS[kind or ""]

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        """Raise `ValueError`, in a sentence that begins with the key, where data or training do not fit the model."""


class NeuralConfig(ModelConfig):
    """A model that is trained and has checkpoints."""

    train: dict[str, Any] = {}
    """Keys of the `train` section that are other for this model."""
    knows: Annotated[list[Knowledge], AfterValidator(_once)] = []
    """What its scores know beside the model's query and the items' rows (trainer/scores/): `request`, the time at which
    the next item is asked for and the features that are `at_request`; `history`, that each place of the user's past can
    be taken again; `attributes`, the features of the candidates; `recent`, what is taken lately and what is new at the
    moment of the request; `transitions`, what others took lately after the user's last item; `age`, how old each item
    is at the request, and whether it is out; `intents`, the predicted labels, which act on what bears them."""
    moments: MomentsConfig = MomentsConfig()
    """For `recent` and `transitions`: which items are candidates besides."""
    cold_share: float = Field(default=0.1, ge=0, le=1)
    """The share of candidates that have the row for unknown items in a training step, so that it, and what is known
    besides of an item without a row, are trained; of a model that knows `attributes`, `recent` or `transitions`. With 1
    candidates have no rows of their own in ranking either: where items do not live long, what is learned of one by
    heart misleads."""
    temperature: float | None = Field(default=None, gt=0)
    """Scores of the item table are cosines of query and row over this; by default their products."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        for part in {"request", "recent", "transitions", "age"} & set(self.knows):
            if data.time_unit == "position":
                raise ValueError(f"knows: {part} needs real times, not time_unit position")
        for key, parts in NEEDS.items():
            if not set(parts) & set(self.knows) and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: acts on a model that knows {' or '.join(parts)}; this one knows none of them")
        asked = [feature.name for feature in data.features if feature.at_request and self.reads_features]
        if self.moments.by is not None and self.moments.by not in asked:
            names = ", ".join(asked) or "none"
            raise ValueError(
                f"moments.by: takes a feature with `at_request: true` that the model reads, got {self.moments.by!r}; "
                f"allowed: {names}"
            )
        if "attributes" in self.knows and not any(map(is_attribute, data.features)):
            raise ValueError("knows: attributes needs a category feature with `of: item` in data.features")
        if "age" in self.knows and dated(data.features) is None:
            raise ValueError("knows: age needs a feature of kind elapsed with `of: item` in data.features")
        if "age" in self.knows and (feature := dated(data.features)) and feature.since_first_event:
            raise ValueError(
                f"knows: age needs dates that are known before; {feature.name!r} has `since_first_event: true`, and "
                "when an item will first be taken tells the target; take `recent`, which counts up to the request"
            )
        if "intents" in self.knows:
            if not self.has_heads:
                raise ValueError(f"knows: intents needs a model with heads for them; kind: {self.kind} has none here")
            if not any(feature.intent for feature in data.features):
                raise ValueError("knows: intents needs a feature with `intent: true` in data.features")

    @property
    def reads_features(self) -> bool:
        """Whether its inputs have more than items, places and times."""
        return True

    def inputs(self, manifest: Manifest) -> list[str]:
        """What its inputs are, in words for the report."""
        return ["items", "features", "times"] if self.reads_features and manifest.features else ["items"]

    @property
    def has_heads(self) -> bool:
        """Whether it has a head for each intent, taught or not."""
        return False

    @property
    def needs_columns(self) -> bool:
        """Whether features are read at all, as inputs or as labels."""
        return self.reads_features or self.has_heads

    def view(self, manifest: Manifest) -> Manifest:
        """The data set as the model sees it."""
        return manifest

    @property
    def weight_of_intents(self) -> float:
        """What the sum of the intents' losses counts beside the item loss; 0 for a model that predicts none."""
        return 0.0

    @property
    def hides(self) -> float | None:
        """Of a model that learns from interactions hidden among the others: how many of them are, each epoch anew."""
        return None

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        """The network, drawn from torch's generator: `trainer.layers.Inputs` in, `trainer.layers.Output` out."""
        raise NotImplementedError


M = TypeVar("M", bound=ModelConfig)
MODELS: Registry[type[ModelConfig]] = Registry(
    "kind of model",
    {
        "intentrec": "trainer.models.intentrec",
        "deep": "trainer.models.deep",
        "sasrec": "trainer.models.sasrec",
        "transformer": "trainer.models.transformer",
        "bert4rec": "trainer.models.bert4rec",
        "transact": "trainer.models.transact",
        "hstu": "trainer.models.hstu",
        "gru": "trainer.models.gru",
        "lstm": "trainer.models.lstm",
    },
)
"""evaluation/baselines adds those that are not trained."""


def register(cls: type[M]) -> type[M]:
    """A decorator that makes a model known by the default of its `kind`."""
    MODELS.add(cls.model_fields["kind"].default)(cls)
    return cls
