"""The item table in memory: attributes by item index, looked up for the items of a batch.

Attributes are a function of the item's index, so they are stored once and not in every interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays import kernels
from ingest.arrays.jagged import Jagged
from ingest.arrays.spans import Lists, Spans
from ingest.data.manifest import Manifest, PreparedFeature
from ingest.data.schema import FIRST_VALUE, UNKNOWN
from ingest.storage import arrow_filesystem, join

MISSING_TIME = int(np.iinfo(np.int64).min)
"""The date of an item that has none."""


@dataclass(frozen=True)
class ItemTable:
    """Attribute columns by item index (V rows): arrays, or `Jagged` for features of kind categories, whose values have
    `kernels.COPIED` to spare."""

    size: int
    columns: dict[str, NDArray | Jagged]
    counts: NDArray[np.int64]
    """How often the training data have each item: shape [V], or [0] where it was not asked for."""

    def of(
        self, feature: PreparedFeature, item: NDArray, time: NDArray, spans: Spans
    ) -> tuple[NDArray, NDArray] | tuple[Lists, Lists]:
        """The feature's values of a batch's tokens and targets; `item` and `time` are of all stored interactions.

        Ages are counted until the interaction.
        """
        column = self.columns[feature.name]
        if isinstance(column, Jagged):
            return _lists(column, item, spans)
        out = spans.empty(np.float32 if feature.is_number else np.int64)
        if feature.kind == "elapsed":
            edges = np.ceil(feature.edges).astype(np.int64)  # ages are integers
            kernels.split_ages(time, item, column, edges, MISSING_TIME, FIRST_VALUE, UNKNOWN, *spans.places, *out)
        else:
            kernels.split_attribute(column, item, *spans.places, *out)
        return out


def _lists(column: Jagged, item: NDArray, spans: Spans) -> tuple[Lists, Lists]:
    lengths = spans.empty()
    kernels.split_item_lengths(column.offsets, item, *spans.places, *lengths)
    sizes = [int(part.sum()) for part in lengths]
    values = [np.empty(size + kernels.COPIED, dtype=np.int64) for size in sizes]
    kernels.split_item_lists(column.values, column.offsets, item, *spans.places, *values)
    return (values[0][: sizes[0]], lengths[0]), (values[1][: sizes[1]], lengths[1])


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
        lists = Jagged.from_arrow(column)
        return Jagged(np.append(lists.values, np.zeros(kernels.COPIED, lists.values.dtype)), lists.offsets)
    if feature.kind == "elapsed":
        return column.fill_null(MISSING_TIME).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.to_numpy(zero_copy_only=False)
