"""How often each item was taken in each bucket of time, as prepare has counted it; only a log with times has it."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.arrays.jagged import Integers
from ingest.data.pairs import read_pairs
from ingest.durations import duration_text, parse_duration

BUCKET = 300_000
"""Milliseconds of a bucket: bucket b holds the times from b * BUCKET on."""


def of_buckets(value: str) -> str:
    """The span of time `value`; `ValueError` where it is not one or more whole buckets."""
    milliseconds = parse_duration(value)
    if milliseconds <= 0 or milliseconds % BUCKET:
        raise ValueError(f"takes a multiple of {duration_text(BUCKET)}, such as 15m or 1d")
    return value


def activity_by(feature: str) -> str:
    """The folder of what is counted by a feature that is known at the request."""
    return f"activity_by/{feature}"


def read_activity(url: str) -> Iterator[tuple[Integers, ...]]:
    """Item, bucket, training events and events of all splits, part by part: four arrays [N] of int64.

    Ascending by item and bucket over all parts. `url`: the folder of the prepared data set. Raises `InputError` where
    they are not there.
    """
    return read_pairs(url, "activity", ["item", "bucket", "training", "total"])


def read_activity_by(url: str, feature: str) -> Iterator[tuple[Integers, ...]]:
    """Item, bucket, the index of the `feature`'s value, training events and events of all splits, likewise."""
    return read_pairs(url, activity_by(feature), ["item", "bucket", "value", "training", "total"])
