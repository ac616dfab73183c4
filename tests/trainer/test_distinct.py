"""The different ones among many items, by flags and by hashes."""

from __future__ import annotations

import pytest
import torch

from trainer.distinct import distinct


@pytest.mark.parametrize("shape", [(0,), (0, 4), (1,), (300,), (60, 5)])
@pytest.mark.parametrize("largest", [0, 1, 40, 299, 300, 10**12])
def test_different_items_are_those_of_unique(shape: tuple[int, ...], largest: int) -> None:
    item_N = torch.randint(largest + 1, shape, generator=torch.Generator().manual_seed(1))
    if item_N.numel():
        item_N.flatten()[-1] = largest
    for ours, theirs in zip(distinct(item_N), item_N.unique(return_inverse=True), strict=True):
        assert ours.dtype == theirs.dtype == torch.int64
        assert torch.equal(ours, theirs)
