"""The log's own ids and labels by index, from the vocabularies of a prepared data set."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.storage import arrow_filesystem, join


def values(url: str, feature: str) -> pa.Array:
    """The values of `feature` (`item`: the item ids) of the data set in the folder `url`; 0 and 1 are none of them."""
    filesystem, path = arrow_filesystem(join(url, "vocab", f"{feature}.parquet"))
    return pq.read_table(path, filesystem=filesystem, columns=["value"])["value"].combine_chunks()
