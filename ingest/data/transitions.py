"""Which item follows which in the training events, and how often, as prepare has counted it."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.arrays.jagged import Integers
from ingest.data.pairs import read_pairs


def read_transitions(url: str) -> Iterator[tuple[Integers, ...]]:
    """The item before, the one after it and how often, part by part: three arrays [N] of int64.

    Both are known items, by index; ascending by both over all parts. `url`: the folder of the prepared data set.
    Raises `InputError` where they are not there.
    """
    return read_pairs(url, "transitions", ["before", "after", "count"])
