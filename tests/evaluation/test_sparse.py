"""Sparse rows that are added to scores against the dense product, however many entries are added at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evaluation.baselines import sparse
from evaluation.baselines.sparse import SparseRows


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_rows_are_added_with_their_weights(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "ENTRIES_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    dense = rng.random((6, 9)) * (rng.random((6, 9)) < 0.4)
    dense[3] = 0
    row, column = dense.nonzero()
    shuffled = rng.permutation(len(row))
    rows = SparseRows(row[shuffled], column[shuffled], dense[row, column][shuffled], 6)
    row_QL, weight_QL = rng.integers(0, 6, (5, 4)), rng.random((5, 4)) * (rng.random((5, 4)) < 0.7)
    weight_QL[2] = 0
    before = torch.from_numpy(rng.random((5, 9)))
    scores = before.clone()
    rows.add(scores, torch.from_numpy(row_QL), torch.from_numpy(weight_QL))
    expected = before.numpy() + np.einsum("ql,qlv->qv", weight_QL, dense[row_QL])
    np.testing.assert_allclose(scores.numpy(), expected)
