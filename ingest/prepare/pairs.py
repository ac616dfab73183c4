"""What is counted for pairs that begin with an item: `<name>/part-*.parquet`, ascending by both keys over all parts.

    transitions   before, after, count               which item follows which, over the training events
    activity      item, bucket, training, total      in which buckets of time an item was taken (`ingest.data.activity`)
    activity_by/<feature>  item, bucket, value, training, total      the same by what is known at the request
    successions   before, time, after, training      each time that an item was taken after another one, and whether it
                                                     is of training (`ingest.data.successions`)

Every partition spills its pairs by ranges of items; a task for each range sums them. Ranges have about as many events
as partitions, so memory does not grow with the log.

N  events, or pairs of them
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ingest.data.activity import BUCKET, activity_by
from ingest.data.schema import DataConfig
from ingest.features.feature import FIRST_VALUE
from ingest.prepare.partition import Job, new_file, one_batch, read_batch
from ingest.prepare.shard_writer import write_table
from ingest.storage import join, open_file

KEYS = {"transitions": ("before", "after"), "activity": ("item", "bucket"), "successions": ("before", "time")}
BY = ("item", "bucket", "value")


def pairs_of(config: DataConfig) -> list[str]:
    """What is counted of such a log; one that has positions alone has only what needs no time."""
    if config.time_unit == "position":
        return ["transitions"]
    return [*KEYS, *(activity_by(feature.name) for feature in config.features if feature.at_request)]


def _spilled(job: Job, name: str, partition: int) -> str:
    return join(job.work, f"{name}/{partition:06d}.arrow")


def spill_transitions(job: Job, partition: int, before_N: NDArray, after_N: NDArray, ranges: list[int]) -> None:
    """Count the pairs of items; a record batch for each range, which begin at `ranges`."""
    pairs = pl.DataFrame({"before": pl.Series(before_N, dtype=pl.Int32), "after": pl.Series(after_N, dtype=pl.Int32)})
    _spill(job, "transitions", partition, pairs.with_columns(count=pl.lit(1)), ranges)


def spill_activity(
    job: Job,
    partition: int,
    item_N: NDArray,
    time_N: NDArray,
    training_N: NDArray,
    values: Mapping[str, NDArray],
    ranges: list[int],
) -> None:
    """Count the events of each item in each bucket, and those of training among them; likewise. `values`: of the
    features that are known at the request, by each of which they are counted, too."""
    item, bucket = pl.Series("item", item_N, pl.Int32), pl.Series("bucket", time_N // BUCKET, pl.Int64)
    events = pl.DataFrame([item, bucket, pl.Series("training", training_N)]).with_columns(total=pl.lit(1))
    known = pl.col("item") >= FIRST_VALUE
    _spill(job, "activity", partition, events.filter(known), ranges)
    for name, value_N in values.items():
        by = events.with_columns(pl.Series("value", value_N)).filter(known)
        _spill(job, activity_by(name), partition, by, ranges)


def spill_successions(
    job: Job, partition: int, item_N: NDArray, time_N: NDArray, training_N: NDArray, again_N: NDArray, ranges: list[int]
) -> None:
    """The pairs of events that follow each other, whose items are not unknown. `again_N`: those with one before."""
    place = np.flatnonzero(again_N)
    place = place[(item_N[place] >= FIRST_VALUE) & (item_N[place - 1] >= FIRST_VALUE)]
    columns = {
        "before": pl.Series(item_N[place - 1], dtype=pl.Int32),
        "time": pl.Series(time_N[place]),
        "after": pl.Series(item_N[place], dtype=pl.Int32),
        "training": pl.Series(training_N[place]),
    }
    _spill(job, "successions", partition, pl.DataFrame(columns), ranges)


def _spill(job: Job, name: str, partition: int, frame: pl.DataFrame, ranges: list[int]) -> None:
    first = KEYS.get(name, BY)[0]  # merging orders by the rest
    counted = frame.sort(first) if name == "successions" else _summed(frame, name)
    begins = counted[first].search_sorted(pl.Series(ranges, dtype=pl.Int32)).to_list()
    table = counted.to_arrow()
    with open_file(_spilled(job, name, partition), "wb") as file, new_file(file, table.schema) as writer:
        for begin, end in pairwise([*begins, counted.height]):
            writer.write_batch(one_batch(table, begin, end))


def _ordered(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """By both keys; equal pairs as one, but for successions, whose order is then that of the items after."""
    return frame.sort(*KEYS[name], "after", "training") if name == "successions" else _summed(frame, name)


def _summed(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The sums of all pairs that are the same, ascending: as one number, a pair takes half the time."""
    if name not in KEYS:
        return summed_by(frame)
    first, second = KEYS[name]
    pair = pl.col(first).cast(pl.Int64) * 2**32 + (pl.col(second).cast(pl.Int64) + 2**31)
    summed = frame.group_by(pair.alias("pair")).agg(pl.exclude(first, second).cast(pl.Int64).sum()).sort("pair")
    firsts = (pl.col("pair") // 2**32).cast(frame[first].dtype).alias(first)
    seconds = (pl.col("pair") % 2**32 - 2**31).cast(frame[second].dtype).alias(second)
    return summed.select(firsts, seconds, pl.exclude("pair"))


def summed_by(frame: pl.DataFrame) -> pl.DataFrame:
    """The same of three keys: the bucket and the value as one where they fit into 32 bits, as most do."""
    item, bucket, value = BY
    values = int(frame[value].max() or 0) + 1  # type: ignore[arg-type]
    first, last = (int(edge or 0) for edge in (frame[bucket].min(), frame[bucket].max()))  # type: ignore[arg-type]
    if (last - first + 1) * values >= 2**31:
        return frame.group_by(BY).agg(pl.exclude(BY).cast(pl.Int64).sum()).sort(BY)
    both = (pl.col(bucket) - first) * values + pl.col(value)
    summed = _summed(frame.select(pl.col(item), both.alias(bucket), pl.exclude(BY)), "activity")
    kinds = {bucket: frame[bucket].dtype, value: frame[value].dtype}
    return summed.select(
        item,
        (pl.col(bucket) // values + first).cast(kinds[bucket]).alias(bucket),
        (pl.col(bucket) % values).cast(kinds[value]).alias(value),
        pl.exclude(BY),
    )


def merge_pairs(job: Job, task: tuple[str, int]) -> dict[str, Any]:
    """Write the pairs called so from one range of items, as all partitions together have them."""
    name, number = task
    frames = [pl.DataFrame(read_batch(_spilled(job, name, partition), number)) for partition in range(job.partitions)]
    merged = _ordered(pl.concat(frames), name)
    write_table(join(job.destination, f"{name}/part-{number:05d}.parquet"), merged)
    return {"pairs": merged.height}
