"""The log's own ids and labels by index, from the vocabularies of a prepared data set."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.arrow_files import open_arrow
from ingest.storage import join


def values(url: str, feature: str) -> pa.Array:
    """The values of `feature` (`item`: the item ids) of the data set in the folder `url`; 0 and 1 are none of them."""
    with open_arrow(join(url, "vocab", f"{feature}.parquet")) as file:
        return pq.read_table(file, columns=["value"])["value"].combine_chunks()
