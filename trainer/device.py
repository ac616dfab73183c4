"""Batches on their way to a GPU: pinned, and copied on a stream of their own while the batch before is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch

from ingest.data.batch import Batch

L = TypeVar("L")


def on_device(batches: Iterator[tuple[Batch, L]], device: torch.device) -> Iterator[tuple[Batch, L]]:
    """The same batches on `device`; on a GPU each is copied while the one before is used."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[Batch, L, torch.cuda.Event] | None = None
    for batch, left in batches:
        with torch.cuda.stream(side):
            copied = batch.pinned().to(device)
            done = side.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copied, left, done
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, left: L, done: torch.cuda.Event) -> tuple[Batch, L]:
    """The batch once its copy is through; its memory is not used again before this stream has done with it."""
    stream = torch.cuda.current_stream()
    stream.wait_event(done)
    for tensor in batch.tensors():
        if tensor.is_cuda:
            tensor.record_stream(stream)
    return batch, left
