"""`categories`: a list of values of a vocabulary, each of them once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.arrays.jagged import Column, Jagged, arrow_offsets, offsets_of
from ingest.features.category import Category
from ingest.features.feature import UNKNOWN, Feature, LookUp, PreparedFeature, register
from ingest.raw import columns as raw


@register("categories")
class Categories(Category):
    is_list = True
    takes = frozenset()

    def columns(self, feature: Feature) -> list[str]:
        return [feature.source]

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return columns[feature.source].categories()

    def compact(self, values: pa.Array) -> pa.Array:
        lengths = pc.list_value_length(values).fill_null(0)
        return pa.LargeListArray.from_arrays(offsets_of(lengths.to_numpy()), super().compact(values.flatten()))

    def count(self, feature: Feature, values: pa.Array, weights: NDArray[np.int64] | None = None) -> pl.DataFrame:
        return super().count(feature, values.flatten())

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        return encode_lists(arrow_offsets(values), super().encode(feature, values.flatten(), look_up).to_numpy())

    def special_rows(self, feature: PreparedFeature) -> pa.Array:
        return pa.array([[], []], pa.list_(pa.int32()))

    def load(self, column: pa.Array) -> Column:
        return Jagged.from_arrow(column)


def encode_lists(offsets: NDArray[np.int64], index: NDArray[np.int32]) -> pa.ListArray:
    """Lists of indices; what is unknown in a list counts once. `index` has the values of all lists."""
    unknown = np.flatnonzero(index == UNKNOWN)
    row = np.searchsorted(offsets, unknown, side="right") - 1
    again = unknown[1:][row[1:] == row[:-1]]
    if len(again):
        kept = np.ones(len(index), dtype=bool)
        kept[again] = False
        before = np.concatenate([[0], np.cumsum(kept)])
        offsets, index = before[offsets], index[kept]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(index))
