"""The `tune` section: which settings are tried, for which models, and how much each model may try. Imports no Ray."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ingest.settings import Settings

DIGITS = 4
"""Of a number that is drawn."""


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < bounds[1]:
        raise ValueError("takes the lower bound first and then the upper one")
    return bounds


def _once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"takes each model once, got {', '.join(names)}")
    return names


class RangeConfig(Settings):
    """The values of one key: exactly one of these."""

    choice: list[Any] | None = Field(default=None, min_length=1)
    """One of these."""
    uniform: Annotated[tuple[float, float], AfterValidator(_rising)] | None = None
    """Between the two, evenly."""
    log_uniform: Annotated[tuple[Annotated[float, Field(gt=0)], float], AfterValidator(_rising)] | None = None
    """Even in the logarithm."""
    int_: Annotated[tuple[int, int], AfterValidator(_rising)] | None = Field(default=None, alias="int")
    """Whole numbers, both bounds among them."""

    @model_validator(mode="after")
    def _one(self) -> RangeConfig:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("takes one of choice: [...], uniform: [a, b], log_uniform: [a, b], int: [a, b]")
        return self

    def ends(self) -> list[Any]:
        """The values that show whether all are possible: every choice, or both bounds."""
        if self.choice is not None:
            return self.choice
        bounds = self.uniform or self.log_uniform or self.int_
        assert bounds is not None
        return list(bounds)

    def draw(self, generator: random.Random) -> Any:
        """One value."""
        if self.choice is not None:
            return generator.choice(self.choice)
        if self.int_ is not None:
            return generator.randint(*self.int_)
        if self.log_uniform is not None:
            low, high = self.log_uniform
            value = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            assert self.uniform is not None
            low, high = self.uniform
            value = generator.uniform(low, high)
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)


class TuneConfig(Settings):
    """How `intentrec tune` looks for settings. All models may try as many, for as long."""

    models: Annotated[list[str], Field(min_length=1), AfterValidator(_once)] | None = None
    """Those that are tuned, each once; by default all that are trained."""
    space: dict[str, RangeConfig] = Field(min_length=1)
    """Keys of the config with the values to try: `train.<key>` and `model.<key>` for each model by itself,
    `models.<name>.<key>` for one, in place of the same key for all."""
    trials: int = Field(default=16, ge=1)
    """Of each model. The first has the config's own settings."""
    epochs: int | None = Field(default=None, ge=1)
    """The most of a trial; by default train.epochs. train.patience may end it before."""
    grace: int = Field(default=3, ge=1)
    """Epochs that every trial has."""
    reduction: int = Field(default=3, ge=2)
    """After `grace` epochs, and after each `reduction` times as many, a trial goes on if it is among the best
    1/`reduction` of those of its model that have come so far (ASHA, arXiv 1810.05934)."""
    seed: int = Field(default=0, ge=0)
    """Of the draws."""
    at_once: int | None = Field(default=None, ge=1)
    """Trials that run at a time; by default as many as the cluster has room for."""
    cpus_per_trial: float = Field(default=1, gt=0)
    """Of Ray's, that each trial takes."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """Of less than one several trials share a GPU; by default one where the cluster has any."""
