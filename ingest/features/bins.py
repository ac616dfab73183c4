"""Features in bins: declared edges, or bins that hold equal parts of the training data.

Bins of equal frequency begin at values of the data; edges that coincide are merged, so that no bin is empty by
construction. They are exact up to some 4 million different values (`vocabulary.ROWS_AT_ONCE`). Of more, whenever so
many have come together, `POINTS` of equal distance in rank are kept, which moves ranks by less than a millionth; for a
billion different values a bin's share of the events is then off by less than one in a thousand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ingest.durations import duration_text, parse_duration
from ingest.errors import InputError
from ingest.features.feature import (
    FIRST_VALUE,
    UNKNOWN,
    Base,
    Feature,
    Fitted,
    Kind,
    LookUp,
    PreparedFeature,
    as_declared,
    prepared,
)
from ingest.features.vocabulary import summed
from ingest.settings import SettingError

POINTS = 1_000_000


class Binned(Kind):
    """A kind whose values are numbers that fall into bins; `durations`: whether edges are spans of time."""

    takes = frozenset(["bins", "bin_labels"])
    durations: bool = False

    def check(self, feature: Feature) -> None:
        super().check(feature)
        bins = feature.bins
        if bins is None:
            if feature.bin_labels is not None:
                raise SettingError("bin_labels", "goes with bins")
            return
        if isinstance(bins, int):
            if bins < 2:
                raise SettingError("bins", "takes at least 2 bins")
        else:
            edges = self.edges(feature)
            if not edges or any(later <= earlier for earlier, later in itertools.pairwise(edges)):
                raise SettingError("bins", "edges must rise and there must be one at least")
        count = bins if isinstance(bins, int) else len(bins) + 1
        if feature.bin_labels is not None and len(feature.bin_labels) != count:
            raise SettingError("bin_labels", f"{count} bins take {count} labels, not {len(feature.bin_labels)}")

    def edges(self, feature: Feature) -> list[float]:
        """The upper edges of declared bins, in milliseconds where they are durations."""
        if not isinstance(feature.bins, list):
            return []
        try:
            edges = [float(parse_duration(edge) if self.durations else edge) for edge in feature.bins]
        except (ValueError, OverflowError) as error:
            what = str(error) if self.durations else "takes numbers"
            raise SettingError("bins", what) from None
        if not all(map(math.isfinite, edges)):
            raise SettingError("bins", "takes finite numbers: the first and the last bin are open")
        return edges

    def in_bins(self, feature: Feature | PreparedFeature) -> bool:
        return True

    def learns(self, feature: Feature) -> bool:
        return not isinstance(feature.bins, list)

    def count(self, feature: Feature, values: pa.Array, weights: NDArray[np.int64] | None = None) -> pl.DataFrame:
        """Columns value and count, values ascending and different."""
        known = values.is_valid().to_numpy(zero_copy_only=False)
        number = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0.0 becomes 0.0
        value, place = np.unique(number, return_inverse=True)
        times = np.bincount(place, None if weights is None else weights[known], len(value)).astype(np.int64)
        return pl.DataFrame({"value": value, "count": times}).filter(pl.col("count") > 0)

    def merge(self, counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
        return summed(counts, summary).sort("value")

    def fit(self, feature: Feature, counted: pl.DataFrame | None, base: Base | None) -> Fitted:
        if base is not None and base.values is not None:
            if isinstance(feature.bins, list) and self.edges(feature) != base.feature.edges:
                raise InputError(
                    f"feature {feature.name!r}: a data set that grows keeps its bins, and bins has others now: prepare "
                    "it anew in another folder"
                )
            return Fitted(as_declared(base.feature, feature), _named_bins(base.values.to_list()))
        edges = self.edges(feature)
        if isinstance(feature.bins, int) and counted is not None:
            edges = _quantile_edges(counted, feature.bins)
        labels = feature.bin_labels or self._labels(feature, edges)
        if len(labels) != len(edges) + 1:
            raise InputError(
                f"feature {feature.name!r}: the data give {len(edges) + 1} bins of equal frequency, "
                f"not {feature.bins}; bin_labels names {len(labels)}"
            )
        return Fitted(prepared(feature, FIRST_VALUE + len(labels), edges), _named_bins(labels))

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        """2 + the number of edges <= value, and 1 where the value is null."""
        known = values.is_valid().to_numpy(zero_copy_only=False)
        number = values.fill_null(0).to_numpy(zero_copy_only=False)
        return pa.array(np.where(known, bin_of(number, np.array(feature.edges, np.float64)), UNKNOWN).astype(np.int32))

    def _labels(self, feature: Feature, edges: list[float]) -> list[str]:
        """Such as `< 7d`, `7d - 30d`, `>= 30d`."""
        if isinstance(feature.bins, list):
            texts = [
                edge if isinstance(edge, str) else text for edge, text in zip(feature.bins, _texts(edges), strict=True)
            ]
        elif self.durations:
            texts = [duration_text(edge) for edge in edges]
            if len(set(texts)) < len(texts):
                texts = [f"{text}ms" for text in _texts(edges)]
        else:
            texts = _texts(edges)
        if not texts:
            return ["any"]
        between = [f"{lower} - {upper}" for lower, upper in itertools.pairwise(texts)]
        return [f"< {texts[0]}", *between, f">= {texts[-1]}"]


def _texts(edges: list[float]) -> list[str]:
    """The edges with as many digits as tell them apart."""
    written = ([f"{edge:.{digits}g}" for edge in edges] for digits in (6, 9, 12, 17))
    return next(texts for texts in written if len(set(texts)) == len(texts))


def bin_of(values: NDArray, edges: NDArray) -> NDArray[np.int64]:
    """The index of each value's bin."""
    return FIRST_VALUE + np.searchsorted(edges, values, side="right")


def _named_bins(labels: list[str]) -> pl.DataFrame:
    """The vocabulary of bins that are not counted yet."""
    rows = FIRST_VALUE + len(labels)
    index = pl.Series("index", range(rows), dtype=pl.Int32)
    return pl.DataFrame({"value": [None, None, *labels], "index": index, "count": pl.zeros(rows, pl.Int64, eager=True)})


def at_ranks(counted: pl.DataFrame, parts: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The values at which each of `parts` equal parts of all begins, and the places where they do."""
    sums = counted["count"].cum_sum().to_numpy()
    places = np.arange(parts) * int(sums[-1]) // parts
    return counted["value"].to_numpy()[np.searchsorted(sums, places, side="right")], places


def summary(counted: pl.DataFrame) -> pl.DataFrame:
    """As many values, `POINTS` of them different at most; the smallest stays."""
    if counted.height <= POINTS:
        return counted
    values, places = at_ranks(counted.sort("value"), POINTS)
    return pl.DataFrame({"value": values, "count": np.diff(places, append=int(counted["count"].sum()))})


def _quantile_edges(counted: pl.DataFrame, bins: int) -> list[float]:
    """Edges from the values at which the bins begin: each once, and none that leaves the first bin empty."""
    if not counted.height:
        return []
    starts, _ = at_ranks(counted, bins)
    return sorted({float(start) for start in starts[1:] if start > counted["value"][0]})
