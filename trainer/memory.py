"""The most memory that this process has taken since a moment: of the accelerator, or where there is none, its own; and
giving back what is free of it."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch

from embeddings.plan import GIB


def reset_peak(device: torch.device) -> None:
    """Begin to look anew. Where the system has no means to, the peak is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float:
    """GiB that tensors took on the GPU, or this process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 2**10 / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10 / GIB


def give_back_free() -> None:
    """Let malloc give what is free in the middle of its heaps to the system, where it can: with glibc.

    What an epoch leaves there is too scattered for the next one, so without this a process grows by some megabytes with
    each. It takes some milliseconds.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
