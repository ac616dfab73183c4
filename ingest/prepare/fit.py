"""What the training data teach: the items' vocabulary and every feature's, put together from the partitions' counts.

A data set that grows begins with the vocabularies, bins and scales that it has (`base`).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from ingest.data.manifest import Manifest, save_manifest
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE, UNKNOWN, Base, Feature, PreparedFeature, kind_of
from ingest.features.vocabulary import build_vocabulary, named, read_parts, summed
from ingest.prepare.histories import ITEM, NEVER
from ingest.prepare.partition import Job
from ingest.prepare.shard_writer import write_table
from ingest.storage import copy, exists, join

ITEM_TOTALS = "totals/item.parquet"
"""Of each item of the log, how many events it has in training and in all, and when its first one is (`appeared`), which
is null where no event stays."""
KNOWN_ITEMS = "totals/known.parquet"
"""The items that training knows: the beginning of the items' vocabulary."""

BEFORE = "_before"
"""What a data set that grows had learned, beside its content until that is there again: whichever run it is that ends,
and with whatever files."""


def feature_of(job: Job, name: str) -> Feature:
    return next(feature for feature in job.config.features if feature.name == name)


def vocabulary_of(job: Job, name: str) -> str:
    """A vocabulary's file while preparing: values in their own type."""
    return join(job.work, f"vocab/{name}.parquet")


def base_of(job: Job, name: str) -> str:
    """The vocabulary that one of a data set that grows begins with."""
    return join(job.destination, BEFORE, f"{name}.parquet")


def keep_base(job: Job, before: Manifest) -> dict[str, Any]:
    """What the data set that grows has learned so far, kept where it is not removed: its features, by name.

    Where its content is removed already, a run that was interrupted has kept it.
    """
    declared, found = (
        [(feature.name, feature.kind, feature.of, feature.is_number) for feature in features]
        for features in (job.config.features, before.features)
    )
    if declared != found:
        raise InputError(
            f"{job.destination}: has the features {', '.join(f.name for f in before.features) or 'none'}, the config "
            "has others or of another kind: a data set grows (data.grow) with the same ones"
        )
    if exists(join(job.destination, "manifest.json")):
        for name in (feature.name for feature in before.features if not feature.is_number):
            copy(join(job.destination, "vocab", f"{name}.parquet"), base_of(job, name))
        items = read_parts(join(job.destination, "vocab", f"{ITEM}.parquet"))
        write_table(base_of(job, ITEM), (part.filter(pl.col("index") < before.items) for part in items))
        save_manifest(before, join(job.destination, BEFORE))
    return {feature.name: feature.model_dump() for feature in before.features}


def _base_values(job: Job, name: str) -> pl.Series:
    return pl.concat([part["value"] for part in read_parts(base_of(job, name), ["value"])])[FIRST_VALUE:]


def merge_counts(job: Job, task: tuple[str, list[str], str]) -> dict[str, Any]:
    """Put some `files` of counts of the items, or of a feature, together into one."""
    name, files, target = task
    write_table(join(job.work, target), _merged(job, name, files))
    return {"file": target}


def _merged(job: Job, name: str, files: list[str]) -> pl.DataFrame:
    parts = (part for file in files for part in read_parts(join(job.work, file)))
    return summed(parts).sort("value") if name == ITEM else kind_of(feature_of(job, name)).merge(parts)


def fit_items(job: Job, files: list[str]) -> dict[str, Any]:
    """The items that training knows, from the files of all items' counts; gives the size of their vocabulary."""
    counted = _merged(job, ITEM, files)
    counted = counted.with_columns(pl.col("first", "appeared").replace(NEVER, None))
    base = None if job.base is None else _base_values(job, ITEM)
    table = build_vocabulary(counted, job.config.min_item_count, base, job.config.item)
    totals = counted.drop("first").with_columns(pl.col("value").cast(table["value"].dtype))
    write_table(join(job.work, ITEM_TOTALS), totals)
    unknown = int(table["count"][UNKNOWN])
    table = table.with_columns(pl.when(pl.col("index") != UNKNOWN).then("count").otherwise(0).alias("count"))
    write_table(join(job.work, KNOWN_ITEMS), table)
    return {"size": table.height, "different": int((counted["count"] > 0).sum()), "unknown": unknown}


def fit_feature(job: Job, task: tuple[str, list[str]]) -> dict[str, Any]:
    """A feature from the files of its counts, as the manifest has it; there are none where nothing is to be learned."""
    name, files = task
    return fitted(job, feature_of(job, name), _merged(job, name, files) if files else None).model_dump()


def fitted(job: Job, feature: Feature, counted: pl.DataFrame | None) -> PreparedFeature:
    """The feature from what was counted; its vocabulary is written."""
    base = None
    if job.base is not None:
        before = PreparedFeature.model_validate(job.base[feature.name])
        base = Base(before, None if before.is_number else _base_values(job, feature.name))
    found = kind_of(feature).fit(feature, counted, base)
    if found.vocabulary is not None:
        write_table(vocabulary_of(job, feature.name), found.vocabulary)
    return found.feature


def publish_vocabulary(job: Job, task: tuple[str, list[int] | None]) -> dict[str, Any]:
    """Copy a vocabulary to the prepared data, values as text but for the items' own ids.

    `task`: its name, and the counts of one that was not counted yet.
    """
    name, counts = task
    parts = read_parts(vocabulary_of(job, name), ["value", "index", "count"])
    frames = parts if name == ITEM else (named(part) for part in parts)
    if counts is not None:
        frames = (frame.with_columns(count=pl.Series(counts, dtype=pl.Int64)) for frame in frames)
    write_table(join(job.destination, f"vocab/{name}.parquet"), frames)
    return {}
