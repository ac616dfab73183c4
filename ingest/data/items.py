"""The item table in memory: attributes by item index, looked up for the items of a batch.

Attributes are a function of the item's index, so they are stored once and not in every interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Column
from ingest.arrow_files import open_arrow
from ingest.data.manifest import Manifest
from ingest.features.feature import PreparedFeature, kind_of
from ingest.storage import join


@dataclass(frozen=True)
class ItemTable:
    """Attribute columns by item index (V rows, a whole catalogue): arrays, or `Jagged` for features that are lists."""

    size: int
    columns: dict[str, Column]
    counts: NDArray[np.int64]
    """How often the training data have each item: shape [V], or [0] where it was not asked for."""

    def of(self, feature: PreparedFeature, item_N: NDArray, time_N: NDArray) -> Column:
        """The feature's values for interactions with items, or lists of values. Ages are counted until `time_N`."""
        return kind_of(feature).at_event(feature, self.columns[feature.name].take(item_N), time_N)


def load_items(url: str, manifest: Manifest, counts: bool = True) -> ItemTable:
    """Read items.parquet of the prepared data set in the folder `url`, with the items' counts or without."""
    features = [feature for feature in manifest.features if feature.of == "item"]
    names = [feature.name for feature in features]
    with open_arrow(join(url, "items.parquet")) as file:
        table = pq.read_table(file, columns=["count", *names] if counts else names)
    return ItemTable(
        size=manifest.catalogue,
        columns={feature.name: kind_of(feature).load(table[feature.name].combine_chunks()) for feature in features},
        counts=table["count"].to_numpy().astype(np.int64) if counts else np.empty(0, np.int64),
    )
