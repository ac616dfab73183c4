"""The kinds of models, by name: `kind` in a config's `models` section is looked up here.

A new model is one file: a subclass of `NeuralConfig` under `@register`, whose `network` makes its nn.Module. The kinds
that come with the project are declared with the module that registers them, which is imported when a config asks for
the kind; a module of the user's own registers its kinds when it is imported. Importing a config imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator

from ingest.data.schema import DataConfig
from ingest.registry import Registry
from ingest.settings import Kinded
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest


Knowledge: TypeAlias = Literal["request", "history"]


def _once(values: list[Knowledge]) -> list[Knowledge]:
    if len(set(values)) < len(values):
        raise ValueError(f"takes each part once, got {', '.join(values)}")
    return values


class ModelConfig(Kinded):
    """One model's section; a subclass gives `kind` a default, by which it is registered."""

    @classmethod
    def class_of(cls, kind: str | None) -> type[ModelConfig]:
        return MODELS[kind or ""]

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        """Raise `ValueError`, in a sentence that begins with the key, where data or training do not fit the model."""


class NeuralConfig(ModelConfig):
    """A model that is trained and has checkpoints."""

    reads_features: ClassVar[bool] = True
    """Whether the model sees more than items, places and times: columns that it does not see are not read."""
    train: dict[str, Any] = {}
    """Keys of the `train` section that are other for this model."""
    knows: Annotated[list[Knowledge], AfterValidator(_once)] = []
    """What its scores know beside the model's query and the items' rows (trainer/scores/): `request`, the time at which
    the next item is asked for and the features that are `at_request`; `history`, that each place of the user's past can
    be taken again."""

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        if "request" in self.knows and data.time_unit == "position":
            raise ValueError("knows: request needs real times, not time_unit position")

    @property
    def weight_of_intents(self) -> float:
        """What the sum of the intents' losses counts beside the item loss; 0 for a model that predicts none."""
        return 0.0

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
    },
)
"""evaluation/baselines adds those that are not trained."""


def register(cls: type[M]) -> type[M]:
    """A decorator that makes a model known by the default of its `kind`."""
    MODELS.add(cls.model_fields["kind"].default)(cls)
    return cls
