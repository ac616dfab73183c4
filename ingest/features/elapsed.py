"""`elapsed`: the time from a date until the event, in bins: an age.

Of an event, the time is computed when the log is read; of an item, the item table keeps the date and the age is
computed for each interaction.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.arrays.jagged import Column
from ingest.errors import InputError
from ingest.features.bins import Binned, bin_of
from ingest.features.feature import UNKNOWN, Feature, PreparedFeature, register
from ingest.raw import columns as raw
from ingest.settings import SettingError

MISSING_TIME = int(np.iinfo(np.int64).min)
"""In memory, the date of an item that has none."""
FIRST_YEAR, LAST_YEAR = 1, 9999


@register("elapsed")
class Elapsed(Binned):
    of_time = True
    durations = True
    takes = Binned.takes | {"unit", "since_first_event"}

    def check(self, feature: Feature) -> None:
        if feature.bins is None:
            raise SettingError("bins", "a feature of kind elapsed needs them, such as [7d, 30d]")
        super().check(feature)
        if feature.since_first_event and (feature.of != "item" or feature.column is not None):
            raise SettingError("since_first_event", "goes with a feature of item and without a column")

    def columns(self, feature: Feature) -> list[str]:
        return [] if feature.since_first_event else [feature.source]

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        """Milliseconds since 1970, or null."""
        column = columns[feature.source]
        if feature.unit == "year":
            return _year_starts(column)
        if pa.types.is_integer(column.data.type):
            if feature.unit is None and time_unit == "datetime":
                raise InputError(
                    f"{column.file}: column {column.name!r} is {column.data.type}, takes a timestamp or a date; "
                    f"integers need a unit in the feature {feature.name!r}, such as unit: year"
                )
            if feature.unit is None and _look_like_years(column):
                raise InputError(
                    f"{column.file}: column {column.name!r} has years, it seems, such as {column.data.drop_null()[0]}; "
                    f"give the feature {feature.name!r} unit: year, or unit: {time_unit} if they are not"
                )
        return column.moments(feature.unit or time_unit)

    def seen_at(self, values: pl.Series, time: pl.Series) -> pl.Series:
        return time - values

    def load(self, column: pa.Array) -> Column:
        return column.fill_null(MISSING_TIME).to_numpy(zero_copy_only=False).astype(np.int64)

    def at_event(self, feature: PreparedFeature, values: Column, time_N: NDArray[np.int64]) -> Column:
        assert isinstance(values, np.ndarray)
        edges = np.ceil(feature.edges).astype(np.int64)  # ages are integers
        return np.where(values == MISSING_TIME, UNKNOWN, bin_of(time_N - values, edges))


def _year_starts(column: raw.Column) -> pl.Series:
    """The first of January of each year, UTC, in milliseconds since 1970; null where there is none."""
    year = column.numbers()
    bad = ((year != year.floor()) | ~year.is_between(FIRST_YEAR, LAST_YEAR)).fill_null(False).arg_true()
    if len(bad):
        raise InputError(
            f"{column.file}: column {column.name!r}: {year[bad[0]]:g} is no year from {FIRST_YEAR} to {LAST_YEAR} "
            f"(in row {column.before + bad[0]})"
        )
    start = (year.fill_null(1970).to_numpy() - 1970).astype("datetime64[Y]").astype("datetime64[ms]")
    frame = pl.DataFrame({"start": start.astype(np.int64), "year": year})
    return frame.select(pl.when(pl.col("year").is_not_null()).then("start").alias(column.name))[column.name]


def _look_like_years(column: raw.Column) -> bool:
    """Whether all integers of the column could be years, which no unit since 1970 gives."""
    smallest, largest = pc.min_max(column.data).as_py().values()
    return smallest is not None and smallest >= FIRST_YEAR and largest <= LAST_YEAR
