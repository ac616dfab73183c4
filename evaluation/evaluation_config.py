"""The sections `evaluate` and `recommend`, and the baselines that need no training. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ingest.settings import Settings


class EvaluateConfig(Settings):
    """The `evaluate` section."""

    filter_seen: bool = True
    """Whether items that the user had before are left out of the ranking. A target that the user had before is then a
    miss: take false for a log in which people come back to items."""
    metric: Literal["NDCG@10", "HR@10", "MRR", "MRR@10"] = "MRR"
    """The metric that models are compared by."""
    resamples: int = 10_000
    """Of the paired bootstrap and the randomisation test."""


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


class PopularityConfig(Settings):
    kind: Literal["popularity"] = "popularity"


class MarkovConfig(Settings):
    kind: Literal["markov"] = "markov"
