"""Cutting sizes into intervals, against a greedy loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ingest.arrays.jagged import cut


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(1, 30))
def test_intervals_are_as_long_as_the_limit_allows(sizes: list[int], limit: int) -> None:
    intervals: list[list[int]] = []
    for size in sizes:
        if intervals and sum(intervals[-1]) + size <= limit:
            intervals[-1].append(size)
        else:
            intervals.append([size])
    bounds = cut(np.array(sizes, dtype=np.int64), limit)
    assert bounds.tolist() == [0, *np.cumsum([len(interval) for interval in intervals], dtype=int)]
