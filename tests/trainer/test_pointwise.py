"""HSTU's jagged attention: what its kernels compute, in an interpreter, and that they compile for GPUs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import trainer.pointwise

LONG, HALF, FLOAT = "*i64", "*bf16", "*fp32"
TYPES = {
    **dict.fromkeys(("vqk", "out", "grad", "found"), HALF),
    **dict.fromkeys(("place", "gap", "grad_place", "grad_gap"), FLOAT),
    **dict.fromkeys(("now", "time"), LONG),
    **dict.fromkeys(("unit", "buckets", "stride", "heads", "longest", "copies"), "i32"),
    **dict.fromkeys(("log_step", "scale"), "fp32"),
    "begins": "*i32",
}
"""Of the kernels' arguments, in a model whose products are in bf16."""


def test_kernels_equal_the_padded_attention(prepared: dict[str, str]) -> None:
    """Of one and two heads, sequences shorter and longer than a tile, with times and without, with requests known."""
    command = [sys.executable, "-m", "tests.trainer.interpreted", prepared["data"]]
    ended = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.parametrize(("timed", "size"), [(False, 64), (True, 128)])
@pytest.mark.parametrize("name", ["_forward", "_backward_rows", "_backward_columns", "_backward_biases"])
def test_kernels_compile_for_a_gpu(
    name: str, timed: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an H100, whose memory for a block they must fit in: 227 KiB; four heads of 256 and 512 dimensions."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(trainer.pointwise, name)
    constants = {"size": size, "width": size, "timed": timed, "tile": trainer.pointwise.TILE}
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {argument: TYPES.get(argument, "constexpr") for argument in names}
    source = ASTSource(kernel, signature, {(names.index(key),): value for key, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 227 * 1024
