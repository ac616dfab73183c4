"""One run's whole configuration: the sections that the stages own, put together and checked against each other.

Reading it imports neither torch nor TorchRec, so that a mistake is told at once.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from typing import Any

import yaml
from pydantic import ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from cluster.tune_config import TuneConfig
from evaluation.evaluation_config import EvaluateConfig, RecommendConfig
from evaluation.metrics import check_metric
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.settings import SettingError, Settings, build_settings, overrides_of, parse_content
from ingest.sources.registry import Source
from ingest.sources.simulate import SimulateConfig
from ingest.storage import absolute, join, read_text
from trainer.models.registry import ModelConfig, NeuralConfig
from trainer.train_config import TrainConfig

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Of runs and models: a folder is called so."""


class WorkersConfig(Settings):
    """How many workers there are at least and at most, by what the Ray cluster has; a number is both."""

    min: int = Field(default=1, ge=1)
    """Without so many nothing begins."""
    max: int
    """More are not taken."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, content: Any) -> Any:
        if isinstance(content, int) and not isinstance(content, bool):
            return {"min": content, "max": content}
        if not isinstance(content, dict | WorkersConfig):
            raise ValueError("takes a number, or {min: 1, max: 4}")
        return content

    @model_validator(mode="after")
    def _check(self) -> WorkersConfig:
        if self.min > self.max:
            raise SettingError("max", f"takes at least min, {self.min}")
        return self


class ClusterConfig(Settings):
    """The `cluster` section: the workers that Ray starts."""

    workers: WorkersConfig = WorkersConfig(min=2, max=2)
    """With `{min: 1, max: 4}` training goes on with those that are left, and takes more when there is room."""
    gpus: bool | None = None
    """Whether each worker takes a GPU; by default they do where the cluster has enough of them."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Of Ray's, that each worker takes."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a worker's tensor operations; by default its CPUs."""
    address: str | None = None
    """A Ray cluster; by default RAY_ADDRESS, or one that is started on this machine for the run."""
    max_failures: int = Field(default=3, ge=0)
    """How often training starts again from the last checkpoint after a worker or a node was lost."""
    grace: float = Field(default=30, gt=0)
    """Seconds in which workers save a checkpoint and leave after SIGTERM."""
    hang_seconds: float = Field(default=40, gt=0)
    """How long a worker may give no sign of life, or not move, before it is ended as one that hangs; with GPUs, where
    nothing tells whether it moves, how long a step may take."""


class Config(Settings):
    """A config file. `models` names what is trained and compared; the first is the one that is compared with others."""

    model_config = ConfigDict(populate_by_name=True)

    extensions: list[str] = []
    """Modules of one's own that register models, feature kinds, data sources or metrics; of the current folder, too."""
    name: str = Field(pattern=f"^{NAME}$")
    """Of the run, whose folder is called so."""
    storage: str = "runs"
    """Folder or s3:// prefix under which the run's folder `name` lies. As all paths: relative ones are taken from the
    current folder."""
    simulate: SimulateConfig | None = None
    """The log is made by the rule of docs/simulation.md."""
    import_: SerializeAsAny[Source] | None = Field(default=None, alias="import")
    """The log is made of a public data set, by `kind`."""
    data: DataConfig
    """Where the log is, and what its columns mean."""
    train: TrainConfig = TrainConfig()
    """How models are trained."""
    models: dict[str, SerializeAsAny[ModelConfig]] = Field(min_length=1)
    """What is trained and compared, by names of one's own; `kind` says what each is."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How models are compared."""
    recommend: RecommendConfig | None = None
    """With this section, even an empty one, `run` ends with recommendations for every user."""
    tune: TuneConfig | None = None
    """What `intentrec tune` tries."""
    cluster: ClusterConfig = ClusterConfig()
    """The workers."""

    _anywhere = field_validator("storage")(absolute)

    @model_validator(mode="before")
    @classmethod
    def _extended(cls, content: Any) -> Any:
        """Import the extensions, before anything that they may register is looked up."""
        modules = content.get("extensions") if isinstance(content, dict) else None
        for module in modules if isinstance(modules, list) else []:
            _import(str(module))
        return content

    @field_validator("train")
    @classmethod
    def _has_metric(cls, value: TrainConfig) -> TrainConfig:
        try:
            check_metric(value.metric)
        except ValueError as error:
            raise SettingError("metric", str(error)) from None
        return value

    @field_validator("models")
    @classmethod
    def _are_folders(cls, value: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        for name in value:
            if not re.fullmatch(NAME, name):
                takes = "takes letters, digits, '_', '.' and '-', and begins with a letter or digit"
                raise ValueError(f"the name of a model {takes}, got {name!r}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.simulate is not None and self.import_ is not None:
            raise ValueError("takes one of simulate and import, not both")
        made = self.simulate is not None or self.import_ is not None
        if made and (self.data.events or self.data.items):
            raise ValueError("data.events and data.items are made by simulate or import: leave them out")
        if not made and self.data.events is None:
            raise ValueError("data.events is missing: name the log, or take a section simulate or import")
        for name, model in self.models.items():
            train = self.train_config(name)
            try:
                model.check(self.data, train)
            except ValueError as error:
                raise ValueError(f"models.{name}.{error}") from None
        if others := [name for name in self.tuned if name not in self.neural]:
            takes = ", ".join(self.neural) or "none of these is trained"
            raise ValueError(f"tune.models: takes models that are trained ({takes}), got {others[0]!r}")
        for key in ("moment", "requests") if self.recommend is not None and self.data.time_unit == "position" else ():
            if getattr(self.recommend, key) is not None:
                raise ValueError(f"recommend.{key}: a log with time_unit position has no moments: leave it out")
        if self.recommend is not None and self.recommended not in self.neural:
            takes = ", ".join(self.neural) or "none of these is trained"
            raise ValueError(f"recommend.model: takes a model that is trained ({takes}), got {self.recommended!r}")
        return self

    def train_config(self, model: str) -> TrainConfig:
        """The `train` section with the model's own keys laid over it."""
        merged = _laid_over(self.train.model_dump(), self.neural[model].train if model in self.neural else {})
        try:
            return self._has_metric(build_settings(TrainConfig, merged, f"models.{model}.train"))
        except SettingError as error:
            raise SettingError(f"models.{model}.train.{error.key}", str(error)) from None

    def text(self) -> str:
        """The config as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False)

    @property
    def folder(self) -> str:
        """Everything of this run is below it."""
        return join(self.storage, self.name)

    @property
    def log_folder(self) -> str:
        return join(self.folder, "log")

    @property
    def data_folder(self) -> str:
        return join(self.folder, "data")

    @property
    def targets_folder(self) -> str:
        return join(self.folder, "targets")

    @property
    def recommendations_folder(self) -> str:
        return join(self.folder, "recommendations")

    @property
    def recommended(self) -> str | None:
        """The model that recommends, None where the config has none that is trained."""
        chosen = self.recommend.model if self.recommend else None
        return chosen or next(iter(self.neural), None)

    @property
    def tuned(self) -> list[str]:
        """The models that are tuned, none without the section `tune`."""
        return [] if self.tune is None else self.tune.models or list(self.neural)

    @property
    def tune_folder(self) -> str:
        return join(self.folder, "tune")

    def model_folder(self, model: str) -> str:
        return join(self.folder, "models", model)

    def checkpoints(self, model: str) -> str:
        return join(self.model_folder(model), "checkpoints")

    @property
    def neural(self) -> dict[str, NeuralConfig]:
        """The models that are trained, in the order of the config."""
        return {name: model for name, model in self.models.items() if isinstance(model, NeuralConfig)}

    def prepared_input(self) -> DataConfig:
        """The data section with the paths of the log that simulate or import made."""
        source = self.source
        if source is None:
            return self.data
        made = {"events": join(self.log_folder, source.events_path), "items": join(self.log_folder, source.items_path)}
        return build_settings(DataConfig, self.data.model_dump() | made, "data")

    @property
    def source(self) -> Source | None:
        """What makes the log, where it is not there already."""
        return self.simulate or self.import_


def overrides_in(url: str) -> list[str]:
    """The values of a YAML file such as tune's best.yaml as `key.sub=value` overrides."""
    try:
        return list(overrides_of(parse_content(read_text(url), url)))
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise InputError(f"{url}: can not be read: {error}") from None


def _import(module: str) -> None:
    """Import an extension, also one of the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        import_module(module)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"extensions: {module!r} can not be imported from {os.getcwd()}: {error}") from None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = (
            isinstance(value, dict)
            and isinstance(merged.get(key), dict)
            and key not in ("sharding", "kernel", "learning_rates", "zch")
        )
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged
