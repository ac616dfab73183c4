"""Batches on their way to a device: the same tensors in the same order, and on a GPU copied while another is used."""

from __future__ import annotations

import pytest
import torch

from tests.small import Data
from trainer.device import on_device


def test_batches_for_the_cpu_are_left_as_they_are(data: Data) -> None:
    batches = [(data.batch([0, 1]), "a"), (data.batch([2]), "b")]
    assert list(on_device(iter(batches), torch.device("cpu"))) == batches


def test_every_tensor_of_a_batch_is_told(data: Data) -> None:
    batch = data.batch([0, 1, 2])
    tensors = list(batch.tensors())
    assert sum(tensor is batch.item_T for tensor in tensors) == 1
    assert len(tensors) == 9 + 2 * 2 + (len(batch.features) - 2) + 2 * 1 + (len(batch.labels) - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_whole_on_a_gpu(data: Data) -> None:
    device = torch.device("cuda", 0)
    batches = [(data.batch([row]), row) for row in range(12)]
    for (batch, row), (moved, same_row) in zip(batches, on_device(iter(batches), device), strict=True):
        assert row == same_row
        for tensor, copied in zip(batch.tensors(), moved.tensors(), strict=True):
            assert copied.device == device or tensor is batch.lengths_B
            torch.testing.assert_close(copied.cpu(), tensor, rtol=0, atol=0)
