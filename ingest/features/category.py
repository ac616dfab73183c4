"""`category`: one value of a vocabulary; from a column, or by a rule from several columns of flags (`first_of`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.features.feature import (
    UNKNOWN,
    Base,
    Feature,
    Fitted,
    Kind,
    LookUp,
    PreparedFeature,
    prepared,
    register,
)
from ingest.features.vocabulary import build_vocabulary, summed
from ingest.raw import columns as raw
from ingest.settings import SettingError


@register("category")
class Category(Kind):
    """Its vocabulary counts events; of an item feature each item once."""

    takes = frozenset(["first_of"])

    def check(self, feature: Feature) -> None:
        super().check(feature)
        if feature.first_of == {}:
            raise SettingError("first_of", "names one label at least")
        if feature.first_of is not None and (feature.of != "event" or feature.column is not None):
            raise SettingError("first_of", "goes with a feature of event and without a column")

    def columns(self, feature: Feature) -> list[str]:
        return [feature.source] if feature.first_of is None else list(feature.first_of.values())

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return columns[feature.source].category() if feature.first_of is None else _first_of(feature, columns)

    def compact(self, values: pa.Array) -> pa.Array:
        return values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values)

    def count(self, feature: Feature, values: pa.Array, weights: NDArray[np.int64] | None = None) -> pl.DataFrame:
        code_N = values.indices.drop_null().to_numpy()
        number = np.bincount(code_N, minlength=len(values.dictionary))
        frame = pl.DataFrame(pa.table({"value": values.dictionary, "count": number}))
        missing = pl.DataFrame({"value": [None], "count": [values.null_count]}, schema=frame.schema)
        return pl.concat([frame.filter(pl.col("count") > 0), missing])

    def merge(self, counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
        return summed(counts).sort("value")

    def fit(self, feature: Feature, counted: pl.DataFrame | None, base: Base | None) -> Fitted:
        assert counted is not None
        vocabulary = build_vocabulary(counted, feature.min_count, None if base is None else base.values, feature.source)
        return Fitted(prepared(feature, vocabulary.height), vocabulary)

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        distinct = pl.from_arrow(values.dictionary)
        assert isinstance(distinct, pl.Series)
        code_N = values.indices.fill_null(len(distinct)).to_numpy()
        return pa.array(np.append(look_up(distinct), np.int32(UNKNOWN))[code_N])


def _first_of(feature: Feature, columns: Mapping[str, raw.Column]) -> pl.Series:
    """The label of the first flag that is true, by setting the labels from the last to the first."""
    assert feature.first_of is not None
    flags = pl.DataFrame({str(i): columns[name].flags() for i, name in enumerate(feature.first_of.values())})
    label = pl.lit(feature.otherwise)
    for i, name in reversed(list(enumerate(feature.first_of))):
        label = pl.when(pl.col(str(i))).then(pl.lit(name)).otherwise(label)
    return flags.select(label.alias("label"))["label"]
