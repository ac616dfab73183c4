"""The item table in memory: attributes by item index, gathered for the items of a batch.

Attributes are a function of the item's index, so they are stored once and not in every interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest import kernels
from ingest.jagged import Jagged
from ingest.manifest import Manifest, PreparedFeature
from ingest.schema import FIRST_VALUE, UNKNOWN
from ingest.storage import arrow_filesystem, join

MISSING_TIME = int(np.iinfo(np.int64).min)
"""The date of an item that has none."""


@dataclass(frozen=True)
class ItemTable:
    """Attribute columns by item index (V rows): arrays, or `Jagged` for features of kind categories."""

    size: int
    columns: dict[str, NDArray | Jagged]
    counts: NDArray[np.int64]
    """How often the training data have each item: shape [V], or [0] where it was not asked for."""

    def gather(self, feature: PreparedFeature, item_N: NDArray, time_N: NDArray) -> NDArray | Jagged:
        """The feature's values for interactions with `item_N` at `time_N`: ages are counted until then."""
        column = self.columns[feature.name]
        if isinstance(column, Jagged):
            offsets = np.empty(len(item_N) + 1, dtype=np.int64)
            kernels.list_offsets(column.offsets, item_N, offsets)
            values = np.empty(offsets[-1], dtype=column.values.dtype)
            kernels.take_lists(column.values, column.offsets, item_N, values)
            return Jagged(values, offsets)
        if feature.kind == "elapsed":
            return age_index(time_N, item_N, column, feature.edges)
        found = np.empty(len(item_N), dtype=column.dtype)
        kernels.look_up(column, item_N, found)
        return found


def age_index(time_N: NDArray, item_N: NDArray, since_V: NDArray, edges: list[float]) -> NDArray[np.int32]:
    """The index of each age `time - since` of an item among the bins; unknown where `since` is missing. [N]."""
    index = np.empty(len(item_N), dtype=np.int32)
    kernels.age_bins(time_N, item_N, since_V, np.asarray(edges, np.float64), MISSING_TIME, FIRST_VALUE, UNKNOWN, index)
    return index


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


def _column(column: pa.Array, feature: PreparedFeature) -> NDArray | Jagged:
    if feature.kind == "categories":
        return Jagged.from_arrow(column)
    if feature.kind == "elapsed":
        return column.fill_null(MISSING_TIME).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.to_numpy(zero_copy_only=False)
