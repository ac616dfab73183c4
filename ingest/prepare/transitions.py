"""How often each item follows each, counted over the training events: `transitions/part-*.parquet`.

Every partition spills its pairs by ranges of the item before; a task for each range sums them. Ranges have about as
many events as partitions, so memory does not grow with the log.

N  pairs
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ingest.prepare.partition import Job, new_file, one_batch, read_batch
from ingest.prepare.shard_writer import write_table
from ingest.storage import join, open_file


def _spilled(job: Job, partition: int) -> str:
    return join(job.work, f"transitions/{partition:06d}.arrow")


def spill_transitions(job: Job, partition: int, before_N: NDArray, after_N: NDArray, ranges: list[int]) -> None:
    """Count the pairs of items; a record batch for each range, which begin at `ranges`."""
    pair_N = before_N.astype(np.int64) << 32 | after_N
    pair, count = np.unique(pair_N, return_counts=True)
    table = pa.table({"before": (pair >> 32).astype(np.int32), "after": pair.astype(np.int32), "count": count})
    begins = np.searchsorted(pair >> 32, ranges).tolist()
    with open_file(_spilled(job, partition), "wb") as file, new_file(file, table.schema) as writer:
        for begin, end in pairwise([*begins, len(pair)]):
            writer.write_batch(one_batch(table, begin, end))


def merge_transitions(job: Job, number: int) -> dict[str, Any]:
    """Write the transitions from one range of items, as all partitions together have them."""
    frames = [pl.DataFrame(read_batch(_spilled(job, partition), number)) for partition in range(job.partitions)]
    summed = pl.concat(frames).group_by("before", "after").agg(pl.col("count").sum()).sort("before", "after")
    write_table(join(job.destination, f"transitions/part-{number:05d}.parquet"), summed)
    return {"pairs": summed.height}
