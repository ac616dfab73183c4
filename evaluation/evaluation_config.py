"""The sections `evaluate` and `recommend`. Imports no torch; the baselines' kinds are known from here on."""

from __future__ import annotations

import datetime

from pydantic import Field, field_validator, model_validator

import evaluation.baselines  # noqa: F401
from evaluation.metrics import check_metric
from ingest.durations import parse_duration, since_1970
from ingest.settings import SettingError, Settings
from ingest.storage import absolute


class EvaluateConfig(Settings):
    """The `evaluate` section."""

    filter_seen: bool = True
    """Whether items that the user had before are left out of the ranking. A target that the user had before is then a
    miss: take false for a log in which people come back to items."""
    metric: str = "MRR"
    """The metric that models are compared by: one of evaluation/metrics.py, or of an extension."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the paired bootstrap and the randomisation test."""

    session: str = "30m"
    """The span without an interaction after which another session begins, for the results by segment."""
    timing: bool = True
    """Whether each model is timed: some requests for one user, and some batches of users."""

    @field_validator("session")
    @classmethod
    def _is_span(cls, value: str) -> str:
        if parse_duration(value) <= 0:
            raise ValueError("takes a span of time such as 30m")
        return value

    _check_metric = field_validator("metric")(check_metric)


class RecommendConfig(Settings):
    """The `recommend` section."""

    model: str | None = None
    """Which of the config's models; by default the first that is trained."""
    top: int = Field(default=20, ge=1)
    """Items for each user."""
    labels: int = Field(default=3, ge=1)
    """The likeliest labels of each intent."""
    filter_seen: bool | None = None
    """Whether items that the user had are left out; by default as in the evaluation."""
    moment: datetime.datetime | None = None
    """When the items are asked for (UTC), where the model knows the request or what is recent; by default at the log's
    last event."""
    requests: str | None = None
    """Instead of all users those of a Parquet file or folder, each with the time of the request and the features that
    are `at_request`, in columns called as in the log."""

    @field_validator("requests")
    @classmethod
    def _anywhere(cls, value: str | None) -> str | None:
        return None if value is None else absolute(value)

    @model_validator(mode="after")
    def _check(self) -> RecommendConfig:
        if self.moment is not None and self.requests is not None:
            raise SettingError("moment", "goes without requests, each of which has a time of its own")
        return self

    @property
    def milliseconds(self) -> int | None:
        """`moment` in milliseconds since 1970."""
        return None if self.moment is None else since_1970(self.moment)
