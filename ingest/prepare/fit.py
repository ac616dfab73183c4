"""Vocabularies of a log, put together from every partition's counts; and what a data set that grows begins with."""

from __future__ import annotations

from typing import Any

import polars as pl

from ingest.data.manifest import PreparedFeature
from ingest.data.schema import FIRST_VALUE, Feature
from ingest.prepare.histories import ITEM, counts_of
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_table
from ingest.prepare.statistics import summed
from ingest.prepare.vocabulary import build_vocabulary, named, read_parts
from ingest.storage import join

PARTITIONS_A_TASK = 32


def vocabulary_of(job: Job, name: str) -> str:
    """A vocabulary's file while preparing: values in their own type."""
    return join(job.work, f"vocab/{name}.parquet")


def write_vocabulary(job: Job, name: str, table: pl.DataFrame) -> None:
    write_table(vocabulary_of(job, name), table)


def base_of(job: Job, name: str) -> str:
    """The vocabulary that one of a data set that grows begins with."""
    return join(job.work, f"base/{name}.parquet")


def base_feature(job: Job, feature: Feature) -> PreparedFeature | None:
    """What the feature was in the data set that grows; None where none does."""
    return None if job.base is None else PreparedFeature.model_validate(job.base[feature.name])


def base_values(job: Job, name: str, kind: pl.DataType) -> pl.Series | None:
    """The values of a vocabulary of the data set that grows, in the type that they have in the log."""
    if job.base is None:
        return None
    values = pl.concat([part["value"] for part in read_parts(base_of(job, name), ["value"])])
    return values[FIRST_VALUE:].cast(kind)


def base_bins(job: Job, feature: Feature) -> tuple[PreparedFeature, list[str]] | None:
    """A feature in bins as it was, and their labels."""
    prepared, labels = base_feature(job, feature), base_values(job, feature.name, pl.String())
    return None if prepared is None or labels is None else (prepared, labels.to_list())


def merge_counts(job: Job, task: tuple[str, list[int], str]) -> dict[str, Any]:
    """Sum some partitions' counts of one vocabulary into one file."""
    name, partitions, target = task
    columns = ["value", "count", "total", "first"] if name == ITEM else ["value", "count"]
    parts = (part for number in partitions for part in read_parts(counts_of(job, name, number), columns))
    write_table(join(job.work, target), summed(parts).sort("value"))
    return {"file": target}


def build_event_vocabulary(job: Job, task: tuple[str, list[str], int]) -> dict[str, Any]:
    """The vocabulary of the items, or of an event feature, from the files of its counts; gives its size."""
    name, files, min_count = task
    columns = ["value", "count", "total", "first"] if name == ITEM else ["value", "count"]
    counted = summed(part for file in files for part in read_parts(join(job.work, file), columns))
    base = base_values(job, name, counted.schema["value"])
    if name == ITEM:
        write_table(join(job.work, "merged/item.parquet"), counted.select("value", "total").sort("value"))
        counted = counted.with_columns(pl.when(pl.col("count") > 0).then("first").alias("first"))
        table = build_vocabulary(counted.select("value", "count", "first"), min_count, base)
    else:
        table = build_vocabulary(counted, min_count, base)
    write_vocabulary(job, name, table)
    different = int((counted["count"] > 0).sum())
    return {"size": table.height, "different": different, "unknown": int(table["count"][1])}


def publish_vocabulary(job: Job, name: str) -> dict[str, Any]:
    """Copy a vocabulary to the prepared data: values as text, but for the items' own ids."""
    parts = read_parts(vocabulary_of(job, name), ["value", "index", "count"])
    frames = parts if name == ITEM else (named(part) for part in parts)
    write_table(join(job.destination, f"vocab/{name}.parquet"), frames)
    return {}
