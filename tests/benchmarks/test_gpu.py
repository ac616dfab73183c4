"""The GPU checks: the script goes through on a CPU in small sizes, and a check that fails is reported."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_checks import SMALL, Bench, Comparison
from benchmarks.gpu_rates import useful_flops
from benchmarks.training import counted_flops
from tests.small import Data, make_step
from trainer.models.sasrec import SASRecConfig

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
    """One of them fails: it has its traceback and what it had found, the others go on, and the exit status is 1."""

    def broken(bench: Any) -> dict[str, Any]:
        bench.note({"compared": 7})
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "precision", (broken, 10))
    assert gpu.main(["--dry", "--out", str(tmp_path)], TINY) == 1
    checks = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert "RuntimeError: no such kernel" in checks["precision"]["traceback"]
    assert checks["precision"]["compared"] == 7
    statuses = {name: check["status"] for name, check in checks.items()}
    assert statuses == dict.fromkeys(gpu.PARTS, "passed") | {"precision": "failed"}, checks
    assert checks["attention"]["compared"] == 36 + 2 * (2 + 2 * 9 + 2)  # HSTU: two dtypes, two layers
    assert all(case["step_ms"] > 0 for case in checks["memory"]["cases"])
    assert {case["model"] for case in checks["throughput"]["cases"]} == {"sasrec", "hstu", "intentrec"}
    assert all(case["targets_per_second"] > 0 for case in checks["throughput"]["cases"])
    assert len(list(tmp_path.glob("profile-*.trace.json"))) == 3


def test_all_parts_together_fit_in_eight_minutes() -> None:
    assert sum(seconds for _, seconds in gpu.PARTS.values()) < 450


@pytest.mark.usefixtures("alone")
def test_useful_flops_are_those_of_the_products_without_the_masked_half(data: Data) -> None:
    """Against torch's counter over a step; one of sequences of length 1 has no masked half."""
    batch, dimension = data.batch(range(8)), 8
    counted = []
    for lengths_B in (batch.lengths_B, torch.ones(batch.tokens, dtype=torch.int64)):
        loss = {"scores_at_once": 10**6, "negatives": 500}  # far more than there are items
        step = make_step(data.manifest, model=SASRecConfig(heads=2, dropout=0.0), loss=loss)
        given = replace(batch, lengths_B=lengths_B, position_T=torch.zeros_like(batch.position_T))
        prepared = step.prepare(given, 0)
        useful = useful_flops(step, given, prepared)
        made = counted_flops(lambda: step.train(given, 0, (1.0, 1.0), 0, prepared))  # noqa: B023
        counted.append((useful, made))
    assert counted[1][0] == pytest.approx(counted[1][1], rel=0.1)
    seen = float((batch.lengths_B * (batch.lengths_B + 1)).sum()) / 2
    assert counted[0][0] - counted[1][0] == pytest.approx(12 * dimension * 2 * (seen - batch.tokens))


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == "benchmarks.gpu needs a CUDA GPU; --dry tries the script in small sizes on a CPU\n"
    )


def test_a_difference_or_nan_is_wrong_and_what_was_found_before_the_time_was_over_is_kept(tmp_path: Path) -> None:
    bench = Bench("", torch.device("cpu"), TINY, time.perf_counter() + 1000, tmp_path / "found.json")
    found = Comparison(bench)
    assert found.begins("first")
    one = torch.ones(3)
    for name, value in (("same", one), ("near", one + 1e-3), ("far", one + 1), ("nan", one * torch.nan)):
        found.add(name, value, one, 1e-2)
    found.bench = replace(bench, deadline=time.perf_counter() - 1)
    assert not found.begins("second")
    assert [line.partition(":")[0] for line in bench.noted()["wrong"]] == ["far", "nan"]
    assert bench.noted()["compared"] == 4
    assert found.result()["skipped"] == ["second"]
