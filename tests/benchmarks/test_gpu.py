"""The GPU checks: the script goes through on a CPU in small sizes, and a check that fails is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_checks import SMALL, Comparison

TINY = replace(
    SMALL, log=("simulate.users=60", "simulate.items=80", "simulate.days=10"), tokens=128, compared=128, steps=1
)


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_all_checks_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """One of them fails: it has its traceback, the others go on, and the exit status is 1."""

    def broken(bench: Any) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.CHECKS, "precision", broken)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)], TINY) == 1
    checks = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert "RuntimeError: no such kernel" in checks["precision"]["traceback"]
    statuses = {name: check["status"] for name, check in checks.items()}
    assert statuses == dict.fromkeys(gpu.CHECKS, "passed") | {"precision": "failed"}, checks
    assert checks["attention"]["compared"] == 36
    assert all(case["step_ms"] > 0 for case in checks["memory"]["cases"])
    assert {case["model"] for case in checks["throughput"]["cases"]} == {"sasrec", "intentrec"}


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu needs a CUDA GPU; --device cpu tries the script in small sizes\n"


def test_a_difference_or_nan_is_wrong() -> None:
    found = Comparison()
    one = torch.ones(3)
    for name, value in (("same", one), ("near", one + 1e-3), ("far", one + 1), ("nan", one * torch.nan)):
        found.add(name, value, one, 1e-2)
    assert [line.partition(":")[0] for line in found.wrong] == ["far", "nan"]
