"""What prepare has counted for pairs that begin with an item (`ingest.prepare.pairs`), read part by part."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.arrays.jagged import Integers
from ingest.errors import InputError
from ingest.features.vocabulary import read_parts
from ingest.storage import join, list_names


def read_pairs(url: str, name: str, columns: list[str]) -> Iterator[tuple[Integers, ...]]:
    """The `columns` of what is called so in the prepared data set `url`, ascending over all parts: int64 [N] each.

    Raises `InputError` where it is not there.
    """
    folder = join(url, name)
    files = sorted(list_names(folder))
    if not files:
        raise InputError(f"{folder}: no such folder, or nothing in it; `intentrec prepare` writes it")
    for file in files:
        for part in read_parts(join(folder, file), columns):
            yield tuple(part[column].cast(int).to_numpy() for column in columns)
