"""`number`: standardised with the mean and deviation of the training events; with `bins`, a category instead."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ingest.features.bins import Binned
from ingest.features.feature import Base, Feature, Fitted, LookUp, PreparedFeature, as_declared, prepared, register
from ingest.raw import columns as raw
from ingest.settings import SettingError

ROUNDING = 1e-12
"""Relative to a mean: by less than so much it may be off."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared differences from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: NDArray, weights: NDArray | None = None) -> Moments:
        """Of `values`, each counted as often as its weight says. Shapes [N]."""
        count = len(values) if weights is None else int(weights.sum())
        if not count:
            return cls()
        mean = float(np.average(values, weights=weights))
        each = np.ones(len(values)) if weights is None else weights
        return cls(count, mean, float(np.dot((values - mean) ** 2, each)))

    def merged(self, other: Moments) -> Moments:
        """Of both (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        mean = self.mean + difference * other.count / count
        return Moments(count, mean, self.squares + other.squares + difference**2 * self.count * other.count / count)

    @property
    def deviation(self) -> float:
        """0 where it is no more than the rounding of the mean."""
        found = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return found if found > ROUNDING * abs(self.mean) else 0.0


@register("number")
class Number(Binned):
    """A missing number is 0 after standardising: the mean."""

    def check(self, feature: Feature) -> None:
        super().check(feature)
        if feature.intent and feature.bins is None:
            raise SettingError("intent", "a number is an intent only with bins")

    def is_number(self, feature: Feature) -> bool:
        return feature.bins is None

    def in_bins(self, feature: Feature | PreparedFeature) -> bool:
        return not feature.is_number

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return columns[feature.source].numbers()

    def count(self, feature: Feature, values: pa.Array, weights: NDArray[np.int64] | None = None) -> pl.DataFrame:
        if self.in_bins(feature):
            return super().count(feature, values, weights)
        if weights is not None:
            weights = weights[values.is_valid().to_numpy(zero_copy_only=False)]
        return pl.DataFrame([asdict(Moments.of(values.drop_null().to_numpy(), weights))])

    def merge(self, counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
        counts = iter(counts)
        first = next(counts)
        if "value" in first.columns:
            return super().merge([first, *counts])
        moments = (Moments(**frame.row(0, named=True)) for frame in counts)
        return pl.DataFrame([asdict(functools.reduce(Moments.merged, moments, Moments(**first.row(0, named=True))))])

    def fit(self, feature: Feature, counted: pl.DataFrame | None, base: Base | None) -> Fitted:
        if self.in_bins(feature):
            return super().fit(feature, counted, base)
        assert counted is not None
        moments = Moments(**counted.row(0, named=True))
        standard = prepared(feature, 0, mean=moments.mean, deviation=moments.deviation or 1.0)
        return Fitted(standard if base is None else as_declared(base.feature, feature))

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        if self.in_bins(feature):
            return super().encode(feature, values, look_up)
        number = pl.Series(values)
        standard = ((number - feature.mean) / feature.deviation).fill_null(0.0).clip(-raw.LARGEST, raw.LARGEST)
        return standard.cast(pl.Float32).to_arrow()
