"""The permutation between indices and rows: one to one, and even over blocks of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embeddings.spread import Spread
from ingest.features.feature import FIRST_VALUE


@given(st.integers(min_value=2, max_value=3000))
def test_every_index_has_a_row_of_its_own(size: int) -> None:
    spread, index = Spread(size), torch.arange(size)
    rows = spread.rows(index)
    assert rows.sort().values.tolist() == index.tolist()
    assert rows[:2].tolist() == [0, 1]
    assert spread.indices(rows).tolist() == index.tolist()


@pytest.mark.parametrize("size", [10_002, 3_000_000_000])
def test_large_tables_come_back(size: int) -> None:
    spread, index = Spread(size), torch.tensor([0, 1, 2, 3, size // 2, size - 1])
    rows = spread.rows(index)
    assert int(rows.min()) >= 0
    assert int(rows.max()) < size
    assert spread.indices(rows).tolist() == index.tolist()


@pytest.mark.parametrize("workers", [2, 8, 64, 512])
@pytest.mark.parametrize("popular", [1000, 20_000])
@pytest.mark.parametrize("size", [100_000, 10_000_000])
def test_popular_values_are_spread_over_blocks(workers: int, popular: int, size: int) -> None:
    rows = Spread(size).rows(torch.arange(FIRST_VALUE, FIRST_VALUE + popular))
    block = -(-size // workers)
    served = torch.bincount(rows // block, minlength=workers)
    sizes = torch.bincount(torch.arange(size) // block, minlength=workers)
    assert (served - popular / size * sizes).abs().max() <= 6
