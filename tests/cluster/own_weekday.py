"""A kind of feature of the tests' own: the day of the week of a moment."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ingest.features.category import Category
from ingest.features.feature import Feature, register
from ingest.raw import columns as raw

DAY_MS = 86_400_000


@register("weekday")
class Weekday(Category):
    takes = frozenset()

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return (columns[feature.source].moments(time_unit) // DAY_MS + 3) % 7
