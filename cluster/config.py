"""One run's whole configuration: the sections that the stages own, put together and checked against each other.

Reading it imports neither torch nor TorchRec, so that a mistake is told at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from evaluation.baselines.markov import MarkovConfig
from evaluation.baselines.popularity import PopularityConfig
from evaluation.evaluation_config import EvaluateConfig, RecommendConfig
from evaluation.metrics import check_metric
from ingest.data.schema import DataConfig
from ingest.settings import Settings, build_settings
from ingest.sources.simulate import SimulateConfig
from ingest.storage import is_remote, join
from trainer.models.deep import DeepConfig
from trainer.models.intentrec import IntentRecConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.train_config import TrainConfig

ModelConfig = Annotated[
    IntentRecConfig | DeepConfig | SASRecConfig | PopularityConfig | MarkovConfig, Field(discriminator="kind")
]


class ImportConfig(Settings):
    """The `import` section: a public data set as its owner ships it."""

    kind: Literal["movielens"] = "movielens"
    source: str
    """A folder or a .zip."""
    interactions: str = "interactions.parquet"
    """Which file, where the source is a folder of Parquet."""


class ClusterConfig(Settings):
    """The `cluster` section: the workers that Ray starts."""

    workers: int = Field(default=2, ge=1)
    gpus: bool | None = None
    """Whether each worker takes a GPU; by default they do where the cluster has enough of them."""
    cpus_per_worker: float = Field(default=1, gt=0)
    threads: int | None = Field(default=None, ge=1)
    """Threads of a worker's tensor operations; by default its CPUs."""
    address: str | None = None
    """A Ray cluster; by default RAY_ADDRESS, or one that is started on this machine for the run."""
    max_failures: int = Field(default=3, ge=0)
    """How often training starts again from the last checkpoint after a worker or a node was lost."""


class Config(Settings):
    """A config file. `models` names what is trained and compared; the first is the one that is compared with others."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    storage: str = "runs"
    """Folder or s3:// prefix under which the run's folder `name` lies."""
    simulate: SimulateConfig | None = None
    import_: ImportConfig | None = Field(default=None, alias="import")
    data: DataConfig
    train: TrainConfig = TrainConfig()
    models: dict[str, ModelConfig] = Field(min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()
    recommend: RecommendConfig | None = None
    """With this section, even an empty one, `run` ends with recommendations for every user."""
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("storage")
    @classmethod
    def _anywhere(cls, value: str) -> str:
        """The same place in every process, whatever folder that runs in."""
        return value if is_remote(value) else str(Path(value).expanduser().absolute())

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
            if isinstance(model, NeuralConfig):
                train = self.train_config(name)
                try:
                    check_metric(train.metric)
                except ValueError as error:
                    raise ValueError(f"train.metric: {error}, got {train.metric!r}") from None
                try:
                    model.check(self.data, train)
                except ValueError as error:
                    raise ValueError(f"models.{name}.{error}") from None
        if self.recommend is not None and self.recommended not in self.neural:
            takes = ", ".join(self.neural) or "none of these is trained"
            raise ValueError(f"recommend.model: takes a model that is trained ({takes}), got {self.recommended!r}")
        return self

    def train_config(self, model: str) -> TrainConfig:
        """The `train` section with the model's own keys laid over it."""
        settings = self.models[model]
        own = settings.train if isinstance(settings, NeuralConfig) else {}
        merged = _laid_over(self.train.model_dump(), own)
        return build_settings(TrainConfig, merged, f"models.{model}.train")

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

    def model_folder(self, model: str) -> str:
        return join(self.folder, "models", model)

    def checkpoints(self, model: str) -> str:
        return join(self.model_folder(model), "checkpoints")

    @property
    def neural(self) -> list[str]:
        """The models that are trained, in the order of the config."""
        return [name for name, model in self.models.items() if isinstance(model, NeuralConfig)]

    def prepared_input(self) -> DataConfig:
        """The data section with the paths of the log that simulate or import made."""
        if self.simulate is None and self.import_ is None:
            return self.data
        if self.simulate is not None:
            made = {"events": join(self.log_folder, "events"), "items": join(self.log_folder, "items")}
        else:
            made = {
                "events": join(self.log_folder, "events.parquet"),
                "items": join(self.log_folder, "items.parquet"),
            }
        return build_settings(DataConfig, self.data.model_dump() | made, "data")


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
