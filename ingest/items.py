"""The item table in memory: attributes by item index, gathered for the items of a batch.

Attributes are a function of the item's index, so they are stored once and not in every interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.jagged import Jagged
from ingest.manifest import Manifest, PreparedFeature
from ingest.schema import FIRST_VALUE, UNKNOWN
from ingest.storage import arrow_filesystem, join

MISSING_TIME = np.iinfo(np.int64).min
"""The date of an item that has none."""
MOST_COMPARED_EDGES = 16
"""Up to so many bins it is faster to compare with each edge than to search."""


@dataclass(frozen=True)
class ItemTable:
    """Attribute columns by item index (V rows): arrays, or `Jagged` for features of kind categories."""

    size: int
    columns: dict[str, NDArray | Jagged]
    counts: NDArray[np.int64]
    """How often the training data have each item: shape [V]."""

    def gather(self, feature: PreparedFeature, item: NDArray, time: NDArray) -> NDArray | Jagged:
        """The feature's values for interactions with `item` [N] at `time` [N]: ages are counted until then."""
        column = self.columns[feature.name]
        if isinstance(column, Jagged):
            return column.take(item)
        if feature.kind == "elapsed":
            return age_index(time, column[item], feature.edges)
        return column[item]


def age_index(time: NDArray, since: NDArray, edges: list[float]) -> NDArray[np.int64]:
    """The index of each age `time - since` among the bins; unknown where `since` is missing. Shapes [N]."""
    missing = since == MISSING_TIME
    age = time - np.where(missing, time, since)
    if len(edges) > MOST_COMPARED_EDGES:
        index = FIRST_VALUE + np.searchsorted(np.asarray(edges), age, side="right")
    else:
        index = np.full(len(age), FIRST_VALUE)
        for edge in edges:
            index += age >= edge
    index[missing] = UNKNOWN
    return index


def load_items(url: str, manifest: Manifest) -> ItemTable:
    """Read items.parquet of the prepared data set in the folder `url`."""
    filesystem, path = arrow_filesystem(join(url, "items.parquet"))
    features = [feature for feature in manifest.features if feature.of == "item"]
    table = pq.read_table(path, filesystem=filesystem, columns=["count", *(feature.name for feature in features)])
    return ItemTable(
        size=table.num_rows,
        columns={feature.name: _column(table[feature.name].combine_chunks(), feature) for feature in features},
        counts=table["count"].to_numpy().astype(np.int64),
    )


def _column(column: pa.Array, feature: PreparedFeature) -> NDArray | Jagged:
    if feature.kind == "categories":
        return Jagged.from_arrow(column)
    if feature.kind == "elapsed":
        return column.fill_null(MISSING_TIME).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.to_numpy(zero_copy_only=False)
