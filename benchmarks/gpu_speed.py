"""The checks of benchmarks/gpu.py that measure: tokens a second, memory, the full softmax, accuracy."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import flops
from benchmarks.gpu_checks import Bench, moved
from benchmarks.training import Case, Driver
from embeddings.table_config import ITEM, TableConfig
from embeddings.workers import Worker, single_process
from ingest.data.batch import Batch
from trainer.device import on_device
from trainer.step import weights_of

GIB = 2**30
SPARE = 6 * GIB
"""Memory beside the table, for the model, the batch and rows on their way."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], bench: Bench) -> float:
    """The median of `bench.sizes.steps` calls, after a warm-up; each waits for the device."""
    found = []
    for number in range(bench.sizes.warmup + bench.sizes.steps):
        synchronise(bench.device)
        began = time.perf_counter()
        call()
        synchronise(bench.device)
        if number >= bench.sizes.warmup:
            found.append(time.perf_counter() - began)
        if bench.late and found:
            break
    return statistics.median(found)


def peak_memory(device: torch.device) -> float | None:
    """GiB, since the last reset; None on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / GIB, 3) if device.type == "cuda" else None


def best_matmul(bench: Bench) -> float:
    """FLOP/s of a square bf16 product."""
    size = bench.sizes.matmul
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: torch.matmul(a, b), bench)


def throughput(bench: Bench) -> dict[str, Any]:
    """Tokens a second and MFU of whole steps by model and dimension, and what the copy stream is worth."""
    peak = best_matmul(bench)
    cases: list[dict[str, Any]] = []
    copies = _copies(bench)
    for compiled in (False, True) if bench.sizes.compile else (False,):
        for model in ("sasrec", "intentrec"):
            for dimension in bench.sizes.dimensions:
                case = bench.case(model, dimension, dropout=0.1, precision="bf16", compile=compiled)
                found = {"skipped": "no time left"} if bench.late else _speed(case, bench, peak)
                cases.append({"model": model, "dimension": dimension, "compile": compiled, **found})
                result = {"best_bf16_matmul_tflops": round(peak / 1e12, 3), "copies": copies, "cases": cases}
                bench.note(result)
    return result


def _speed(case: Case, bench: Bench, peak: float) -> dict[str, Any]:
    began = time.perf_counter()
    with single_process(bench.device):
        worker = Worker(device=bench.device)
        step, (on_cpu,) = case.step(worker), case.batches(1, worker)
        batch = on_cpu.to(bench.device)
        needed = flops.total(flops.needed_flops(step, on_cpu), outside=True)
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = seconds_of(Driver(step, [batch]).take, bench)
    return {
        "tokens": batch.tokens,
        "step_ms": round(1e3 * seconds, 3),
        "tokens_per_second": round(batch.tokens / seconds),
        "tflop_a_step": round(needed / 1e12, 4),
        "mfu": round(needed / seconds / peak, 4),
        "peak_gib": peak_memory(bench.device),
        "with_warm_up_s": round(time.perf_counter() - began, 1),
    }


def _copies(bench: Bench) -> dict[str, float]:
    """Milliseconds of a step with batches pinned and copied on a stream of their own, and copied in its way."""
    case = bench.case("intentrec", bench.sizes.dimensions[0], precision="bf16")
    with single_process(bench.device):
        worker = Worker(device=bench.device)
        step, batches = case.step(worker), case.batches(2, worker)
        weights = [weights_of(batch).tolist() for batch in batches]
        count = max(bench.sizes.warmup, 1) + bench.sizes.steps

        def in_the_way() -> Iterator[tuple[Batch, int]]:
            for number in range(count):
                yield batches[number % len(batches)].to(bench.device), number

        def on_a_stream() -> Iterator[tuple[Batch, int]]:
            return on_device(((batches[number % len(batches)], number) for number in range(count)), bench.device)

        found = {}
        for name, source in (("in_the_way", in_the_way), ("own_stream", on_a_stream)) * 2:
            began = 0.0
            for batch, number in source():
                if number == max(bench.sizes.warmup, 1):
                    synchronise(bench.device)
                    began = time.perf_counter()
                step.train(batch, number, weights[number % len(weights)])
            synchronise(bench.device)
            found[f"{name}_ms"] = round(1e3 * (time.perf_counter() - began) / bench.sizes.steps, 3)
    return found


def memory(bench: Bench) -> dict[str, Any]:
    """Steps over catalogues of rising size: time must not rise with it, nor memory but for the rows."""
    settings: dict[str, dict[str, Any]] = {"fp32": {}}
    if "precision" in TableConfig.model_fields:
        settings["fp16"] = {"precision": "fp16"}
    if "kernel" in TableConfig.model_fields and bench.device.type == "cuda":
        settings["uvm_caching"] = {"kernel": {ITEM: "fused_uvm_caching"}, "cache_load_factor": 0.05}
    cases: list[dict[str, Any]] = []
    for name, tables in settings.items():
        for rows in bench.sizes.rows if name == "fp32" else bench.sizes.rows[-1:]:
            seconds = max((case["built_s"] * rows / case["rows"] for case in cases[1:] if "built_s" in case), default=0)
            late = time.perf_counter() + seconds > bench.deadline
            reason = f"no time left: takes {seconds:.0f} s" if late else _too_large(bench, rows, name)
            found = {"skipped": reason} if reason else _with_rows(bench, rows, tables)
            cases.append({"rows": rows, "tables": name, **found})
            bench.note({"cases": cases})
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
    timed = [case["step_ms"] for case in cases if case["tables"] == "fp32" and "step_ms" in case]
    return {"cases": cases, "step_of_largest_over_smallest": round(timed[-1] / timed[0], 3) if timed else None}


def _table_bytes(rows: int, name: str) -> float:
    """Rows of 64 values and the row-wise Adagrad's state, where the device holds them."""
    size = rows * (64 * (2 if name == "fp16" else 4) + 4.0)
    return size * 0.1 if name == "uvm_caching" else size


def _too_large(bench: Bench, rows: int, name: str) -> str | None:
    if bench.device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(bench.device)
    needed = _table_bytes(rows, name) + SPARE
    return None if needed < free else f"needs {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"


def _with_rows(bench: Bench, rows: int, tables: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    case = bench.case("sasrec", 64, precision="bf16", tables={"dimension": 64} | tables)
    with single_process(bench.device):
        worker = Worker(device=bench.device)
        (batch,) = case.batches(1, worker)
        case, batch = moved(case, rows, batch)
        step = case.step(worker)
        synchronise(bench.device)
        built = time.perf_counter() - began
        held = torch.cuda.memory_allocated(bench.device) / GIB if bench.device.type == "cuda" else None
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        seconds = seconds_of(Driver(step, [batch.to(bench.device)]).take, bench)
    return {
        "step_ms": round(1e3 * seconds, 3),
        "table_gib": round(_table_bytes(rows, "fp16" if tables.get("precision") == "fp16" else "fp32") / GIB, 3),
        "held_gib": held if held is None else round(held, 3),
        "peak_gib": peak_memory(bench.device),
        "built_s": round(built, 1),
    }


def full_softmax(bench: Bench) -> dict[str, Any]:
    """The full softmax in chunks and tiles against sampled negatives: milliseconds of a step, and peak memory."""
    losses: dict[str, dict[str, Any]] = {"sampled": {"kind": "sampled"}}
    for scores in bench.sizes.scores:
        losses[f"full, {scores} scores at once"] = {"kind": "full", "scores_at_once": scores}
    found: dict[str, Any] = {}
    short = replace(bench, sizes=replace(bench.sizes, warmup=1, steps=min(bench.sizes.steps, 4)))
    for name, loss in losses.items():
        if bench.late:
            found[name] = {"skipped": "no time left"}
            continue
        case = bench.case("sasrec", bench.sizes.dimensions[0], precision="bf16", loss=loss)
        with single_process(bench.device):
            case, batch = moved(case, bench.sizes.full_items, case.batches(1, Worker())[0])
            step = case.step(Worker(device=bench.device))
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(bench.device)
            seconds = seconds_of(Driver(step, [batch.to(bench.device)]).take, short)
        found[name] = {"step_ms": round(1e3 * seconds, 3), "peak_gib": peak_memory(bench.device)}
    return {"items": bench.sizes.full_items, "losses": found}


def ml_1m(bench: Bench) -> dict[str, Any]:
    """SASRec and IntentRec with the full softmax through the project's own command: NDCG@10, whole catalogue."""
    if bench.ml_1m is None:
        return {"skipped": "needs --ml-1m"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cluster.cli", "run", "configs/ml-1m.yaml", "--no-ray"]
        command += [f"storage={folder}", f"import.source={bench.ml_1m}", f"train.epochs={bench.epochs}"]
        command += [f"cluster.gpus={str(bench.device.type == 'cuda').lower()}"]
        if bench.device.type == "cuda":
            command += ["train.precision=bf16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-4000:]}")
        (path,) = Path(folder).glob("*/results.json")
        results = json.loads(path.read_text())
    return {
        "command": " ".join(command[1:]),
        "models": {
            name: {
                "metrics": {metric: round(model["metrics"][metric], 4) for metric in ("HR@10", "NDCG@10", "MRR")},
                "training_seconds": model["seconds"] and round(model["seconds"], 1),
            }
            for name, model in results["models"].items()
        },
    }
