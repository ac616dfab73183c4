"""Which item follows which in the training events, and how often, as prepare has counted it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ingest.arrays.jagged import Integers
from ingest.data.pairs import read_pairs


def read_transitions(url: str) -> Iterator[tuple[Integers, ...]]:
    """The item before, the one after it and how often, part by part: three arrays [N] of int64.

    Both are known items, by index; ascending by both over all parts. `url`: the folder of the prepared data set.
    Raises `InputError` where they are not there.
    """
    return read_pairs(url, "transitions", ["before", "after", "count"])


def target_counts(url: str, items: int) -> Integers:
    """How often each of the first `items` items is a target of training, [items] of int64: not as a user's first event.

    What comes after an unknown item is left out.
    """
    counts = np.zeros(items, dtype=np.int64)
    for _, after, count in read_transitions(url):
        np.add.at(counts, after, count)
    return counts
