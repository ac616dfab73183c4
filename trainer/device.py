"""Batches on their way to a GPU: pinned, and copied on a stream of their own while the batch before is trained on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

import torch

from ingest.data.batch import Batch
from ingest.data.reader import ahead

R = TypeVar("R")


def on_device(batches: Iterator[tuple[Batch, R]], device: torch.device) -> Iterator[tuple[Batch, R]]:
    """The same batches on `device`; on a GPU each is copied while the one before is used."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    for batch, remaining, copied in ahead(_copies(batches, device, side), 1):
        stream = torch.cuda.current_stream()
        stream.wait_event(copied)
        for tensor in batch.tensors():
            if tensor.is_cuda:
                tensor.record_stream(stream)  # its memory is not used again before this stream has done with it
        yield batch, remaining


def _copies(
    batches: Iterator[tuple[Batch, R]], device: torch.device, side: torch.cuda.Stream
) -> Generator[tuple[Batch, R, torch.cuda.Event], None, None]:
    """The batches as they are being copied, and what tells that a copy is through."""
    for batch, remaining in batches:
        with torch.cuda.stream(side):
            moved = batch.pinned().to(device)
            copied = side.record_event()
        yield moved, remaining, copied
