"""How many events each item has in every five minutes, as prepare has counted them."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.arrays.jagged import Integers
from ingest.errors import InputError
from ingest.features.vocabulary import read_parts
from ingest.storage import join, list_names

BUCKET = 300_000
"""Milliseconds that are counted together."""


def read_activity(url: str) -> Iterator[tuple[Integers, Integers, Integers, Integers]]:
    """Item, bucket, events of training and of all splits, part by part: four arrays [N] of int64.

    A bucket is a time // `BUCKET`; ascending by item, then bucket over all parts. `url`: the folder of the prepared
    data set. Raises `InputError` where they are not there.
    """
    folder = join(url, "activity")
    names = sorted(list_names(folder))
    if not names:
        raise InputError(f"{folder}: no such folder, or nothing in it; `intentrec prepare` writes it")
    for name in names:
        for part in read_parts(join(folder, name), ["item", "bucket", "training", "total"]):
            item, bucket, training, total = (part[column].cast(int).to_numpy() for column in part.columns)
            yield item, bucket, training, total
