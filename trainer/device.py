"""Batches on their way to a GPU: pinned, and copied on a stream of their own while the batch before is trained on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ingest.data.batch import Batch
from ingest.data.reader import ahead

R = TypeVar("R")


def on_device(
    batches: Iterator[tuple[Batch, R]], device: torch.device, used: torch.cuda.Stream | None = None
) -> Iterator[tuple[Batch, R]]:
    """The same batches on `device`; on a GPU each is copied while the one before is used, on the stream `used`, or the
    current one."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    for batch, remaining, copied in ahead(_copies(batches, device, side), 1):
        stream = used or torch.cuda.current_stream()
        stream.wait_event(copied)
        used_on(stream, batch)
        yield batch, remaining


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which the CPU has made, on `device`; on a GPU what comes after waits for it, and the host does not."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def used_on(stream: torch.cuda.Stream, value: Any) -> None:
    """Whatever tensors `value` has on a GPU: their memory is not used again before `stream` has done with them."""
    if isinstance(value, Tensor) and not value.is_cuda:
        return
    if hasattr(value, "record_stream"):  # a tensor, or a collection of TorchRec's
        value.record_stream(stream)
    elif isinstance(value, Mapping):
        used_on(stream, list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            used_on(stream, each)
    elif is_dataclass(value):
        used_on(stream, vars(value))


def _copies(
    batches: Iterator[tuple[Batch, R]], device: torch.device, side: torch.cuda.Stream
) -> Generator[tuple[Batch, R, torch.cuda.Event], None, None]:
    """The batches as they are being copied, and what tells that a copy is through."""
    for batch, remaining in batches:
        with torch.cuda.stream(side):
            moved = batch.pinned().to(device)
            copied = side.record_event()
        yield moved, remaining, copied
