"""Which item follows which in the training events, and how often, as prepare has counted it."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.arrays.jagged import Integers
from ingest.errors import InputError
from ingest.features.vocabulary import read_parts
from ingest.storage import join, list_names


def read_transitions(url: str) -> Iterator[tuple[Integers, Integers, Integers]]:
    """The item before, the one after it and how often, part by part: three arrays [N] of int64.

    Both are known items, by index; ascending by both over all parts. `url`: the folder of the prepared data set.
    Raises `InputError` where they are not there.
    """
    folder = join(url, "transitions")
    names = sorted(list_names(folder))
    if not names:
        raise InputError(f"{folder}: no such folder, or nothing in it; `intentrec prepare` writes it")
    for name in names:
        for part in read_parts(join(folder, name), ["before", "after", "count"]):
            before, after, count = (part[column].cast(int).to_numpy() for column in part.columns)
            yield before, after, count
