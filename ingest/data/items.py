"""The item table in memory: attributes by item index, looked up for the items of a batch.

Attributes are a function of the item's index, so they are stored once and not in every interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Column, Jagged
from ingest.data.manifest import Manifest, PreparedFeature
from ingest.data.schema import FIRST_VALUE, UNKNOWN
from ingest.storage import arrow_filesystem, join

MISSING_TIME = int(np.iinfo(np.int64).min)
"""The date of an item that has none."""


@dataclass(frozen=True)
class ItemTable:
    """Attribute columns by item index (V rows): arrays, or `Jagged` for features of kind categories."""

    size: int
    columns: dict[str, Column]
    counts: NDArray[np.int64]
    """How often the training data have each item: shape [V], or [0] where it was not asked for."""

    def of(self, feature: PreparedFeature, item_N: NDArray, time_N: NDArray) -> Column:
        """The feature's values for interactions with items, or lists of values. Ages are counted until `time_N`."""
        values = self.columns[feature.name].take(item_N)
        if feature.kind != "elapsed":
            return values
        edges = np.ceil(feature.edges).astype(np.int64)  # ages are integers
        bins = FIRST_VALUE + np.searchsorted(edges, time_N - values, side="right")
        return np.where(values == MISSING_TIME, UNKNOWN, bins)


def load_items(url: str, manifest: Manifest, counts: bool = True) -> ItemTable:
    """Read items.parquet of the prepared data set in the folder `url`, with the items' counts or without."""
    filesystem, path = arrow_filesystem(join(url, "items.parquet"))
    features = [feature for feature in manifest.features if feature.of == "item"]
    names = [feature.name for feature in features]
    table = pq.read_table(path, filesystem=filesystem, columns=["count", *names] if counts else names)
    return ItemTable(
        size=manifest.items,
        columns={feature.name: _column(table[feature.name].combine_chunks(), feature) for feature in features},
        counts=table["count"].to_numpy().astype(np.int64) if counts else np.empty(0, np.int64),
    )


def _column(column: pa.Array, feature: PreparedFeature) -> Column:
    if feature.kind == "categories":
        return Jagged.from_arrow(column)
    if feature.kind == "elapsed":
        return column.fill_null(MISSING_TIME).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.to_numpy(zero_copy_only=False)
