"""Calls for which a host waits for a GPU, found where there is none: by what they are.

A GPU is waited for by what brings a number to the host, and by what has to know the data to know its result's size.
Numbers that the CPU made itself are told from those of the device by who reads them: see `ON_THE_HOST`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
READS = {"tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu"}
SIZES = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "is_nonzero"}
ON_THE_HOST = (
    "trainer/attention.py",
    "trainer/scores/history.py times_before",
    "fbgemm_gpu _generate_vbe_metadata",
)
"""Who reads numbers that the CPU has: ours those that come from `Batch.lengths_B`, whose results are copied from there,
and fbgemm the tables' widths."""


def place() -> str:
    """The file and function of ours that make the call, or the function of fbgemm's or TorchRec's."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        for library in ("fbgemm_gpu", "torchrec"):
            if f"/{library}/" in name:
                return f"{library} {frame.f_code.co_name}"
        if name.startswith(str(ROOT)) and "/.venv/" not in name and "/tests/" not in name:
            return f"{Path(name).relative_to(ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class Waits(TorchDispatchMode):
    """Counts, in `found`, such calls by what they are and who makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.reads = _Reads(self.found)

    def __enter__(self) -> Waits:
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._opname, kwargs or {}
        mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None and func._overloadname != "self_int"
        if name in SIZES or mask or repeats:
            _note(self.found, f"{name} with a mask" if mask else name, place())
        return func(*args, **kwargs)


class _Reads(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and args and isinstance(args[0], Tensor):
            _note(self.found, name, place())
        return func(*args, **(kwargs or {}))


def _note(found: Counter[str], what: str, where: str) -> None:
    if not where.startswith(ON_THE_HOST):
        found[f"{what} in {where}"] += 1
