"""The kinds of models, by name: `kind` in a config's `models` section is looked up here.

A new model is one file: a subclass of `NeuralConfig` under `@register`, whose `network` makes its nn.Module. The kinds
that come with the project are declared with the module that registers them, which is imported when a config asks for
the kind; a module of the user's own registers its kinds when it is imported. Importing a config imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.settings import Kinded
from trainer.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest


class ModelConfig(Kinded):
    """One model's section; a subclass gives `kind` a default, by which it is registered."""

    trained: ClassVar[bool]
    """Whether the model is a neural one, with checkpoints, or is counted when it is evaluated."""

    @classmethod
    def class_of(cls, kind: str | None) -> type[ModelConfig]:
        return model_config(kind or "")

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        """Raise `ValueError`, in a sentence that begins with the key, where data or training do not fit the model."""


class NeuralConfig(ModelConfig):
    """A model that is trained."""

    trained: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    """Whether the model sees more than items, places and times: columns that it does not see are not read."""
    train: dict[str, Any] = {}
    """Keys of the `train` section that are other for this model."""

    @property
    def weight_of_intents(self) -> float:
        """What the sum of the intents' losses counts beside the item loss; 0 for a model that predicts none."""
        return 0.0

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        """The network, drawn from torch's generator: `trainer.layers.Inputs` in, `trainer.layers.Output` out."""
        raise NotImplementedError


M = TypeVar("M", bound=ModelConfig)
_modules: dict[str, str] = {}
_configs: dict[str, type[ModelConfig]] = {}


def declare(**modules: str) -> None:
    """Make kinds known by the module that registers each, which is imported when a config asks for it."""
    _modules.update(modules)


def register(cls: type[M]) -> type[M]:
    """Decorator: makes the kind that is the default of `cls.kind` known. `ValueError` where another class has it."""
    kind = cls.model_fields["kind"].default
    known = _configs.setdefault(kind, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"model kind {kind!r} of {cls.__module__} is taken by {known.__module__}")
    _configs[kind] = cls
    return cls


def model_config(kind: str) -> type[ModelConfig]:
    """The config's class of a kind; `InputError` where there is none."""
    if kind not in _configs and kind in _modules:
        import_module(_modules[kind])
    if kind not in _configs:
        raise InputError(f"no model of kind {kind!r}; allowed: {', '.join(sorted(_modules | _configs))}")
    return _configs[kind]


declare(
    intentrec="trainer.models.intentrec",
    deep="trainer.models.deep",
    sasrec="trainer.models.sasrec",
)
