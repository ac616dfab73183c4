"""All checks that need a GPU, each of which can be run alone. Prints JSON; status 1 where one failed.

    for check in attention precision tables full_softmax memory throughput; do      # one that crashes ends alone
        timeout 200 python -m benchmarks.gpu --out FOLDER --only $check; done
    python -m benchmarks.gpu --out FOLDER --device cpu      the same checks in small sizes, to try the script itself

    attention     the kernels against the CPU in fp32, forward and gradients
    precision     a bf16 step against the fp32 step
    tables        a step of TorchRec's tables and their optimizers on the GPU against the CPU
    full_softmax  time and memory against sampled negatives, with a million items
    memory        a step's time and memory with 10 thousand, 10 million and 100 million items
    throughput    tokens a second and share of the best bf16 matrix product (MFU)

What a check finds is in FOLDER/<check>.json as it goes, and it leaves out what it has no time for. The data are made in
FOLDER once. Accuracy on a GPU: `benchmarks.main_job` with `cluster.gpus=true train.precision=bf16`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_checks import SMALL, Bench, Sizes, attention, moved, precision, tables
from benchmarks.training import Case, Training, counted_flops, header, prepared
from embeddings.table_config import ITEM
from embeddings.workers import Worker, single_process
from ingest.data.batch import Batch

GIB = 2**30
WARM_UP = 3


def timed(bench: Bench, call: Callable[[], Any]) -> dict[str, Any]:
    """The median of `bench.sizes.steps` calls after a warm-up, each of which waits for the device, and peak memory."""
    cuda = bench.device.type == "cuda"
    found = []
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    for number in range(WARM_UP + bench.sizes.steps):
        began = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize(bench.device)
        if number >= WARM_UP:
            found.append(time.perf_counter() - began)
        if bench.late and found:
            break
    peak = round(torch.cuda.max_memory_allocated(bench.device) / GIB, 3) if cuda else None
    return {"step_ms": round(1e3 * statistics.median(found), 3), "peak_gib": peak}


def steps_over(case: Case, batch: Batch, device: torch.device) -> Training:
    return Training(case.step(Worker(device=device)), repeat(batch.to(device)))


def throughput(bench: Bench) -> dict[str, Any]:
    """Tokens a second and MFU of whole steps by model and dimension."""
    size = bench.sizes.tokens // 8
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    best = 2 * size**3 / timed(bench, lambda: torch.matmul(a, b))["step_ms"] * 1e3
    result: dict[str, Any] = {"best_bf16_matmul_tflops": round(best / 1e12, 3), "cases": []}
    for model in ("sasrec", "intentrec"):
        for dimension in bench.sizes.dimensions:
            flops = 0.0
            for compiled in (False, True) if bench.device.type == "cuda" else (False,):
                case = bench.case(model, dimension, dropout=0.1, precision="bf16", compile=compiled)
                found: dict[str, Any] = {"model": model, "dimension": dimension, "compile": compiled}
                result["cases"].append(found)
                if bench.late:
                    found["skipped"] = "no time left"
                    continue
                with single_process(bench.device):
                    (batch,) = case.batches(1, Worker())
                    training = steps_over(case, batch, bench.device)
                    flops = flops or counted_flops(training.take)
                    found |= {"tokens": batch.tokens, "tflop_a_step": round(flops / 1e12, 4)}
                    found |= timed(bench, training.take)
                found["tokens_per_second"] = round(1e3 * batch.tokens / found["step_ms"])
                found["mfu"] = round(1e3 * flops / found["step_ms"] / best, 4)
                bench.note(result)
    return result


def memory(bench: Bench) -> dict[str, Any]:
    """Steps over catalogues of rising size: time must not rise with it, nor memory but for the rows."""
    settings: dict[str, dict[str, Any]] = {"fp32": {}, "fp16": {"precision": "fp16"}}
    if bench.device.type == "cuda":
        settings["uvm_caching"] = {"kernel": {ITEM: "fused_uvm_caching"}, "cache_load_factor": 0.05}
    cases: list[dict[str, Any]] = []
    for name, section in settings.items():
        for rows in bench.sizes.rows if name == "fp32" else bench.sizes.rows[-1:]:
            size = rows * (64 * (2 if name == "fp16" else 4) + 4.0)
            found: dict[str, Any] = {"rows": rows, "tables": name, "table_gib": round(size / GIB, 3)}
            cases.append(found)
            if bench.late:
                found["skipped"] = "no time left"
                continue
            case = bench.case("sasrec", 64, precision="bf16", tables={"dimension": 64} | section)
            with single_process(bench.device), suppress(torch.OutOfMemoryError):
                case, batch = moved(case, rows, case.batches(1, Worker())[0])
                found |= {"skipped": "out of memory"}
                found |= timed(bench, steps_over(case, batch, bench.device).take)
                del found["skipped"]
            bench.note({"cases": cases})
            free(bench.device)
    ms = [case["step_ms"] for case in cases if case["tables"] == "fp32" and "step_ms" in case]
    return {"cases": cases, "step_of_largest_over_smallest": round(ms[-1] / ms[0], 3) if ms else None}


def full_softmax(bench: Bench) -> dict[str, Any]:
    """The full softmax in chunks and tiles against sampled negatives: milliseconds of a step, and peak memory."""
    losses: dict[str, dict[str, Any]] = {"sampled": {"kind": "sampled"}}
    for scores in bench.sizes.scores:
        losses[f"full, {scores} scores at once"] = {"kind": "full", "scores_at_once": scores}
    found: dict[str, Any] = {}
    for name, loss in losses.items():
        if bench.late:
            found[name] = {"skipped": "no time left"}
            continue
        case = bench.case("sasrec", bench.sizes.dimensions[0], precision="bf16", loss=loss)
        with single_process(bench.device):
            case, batch = moved(case, bench.sizes.full_items, case.batches(1, Worker())[0])
            found[name] = timed(bench, steps_over(case, batch, bench.device).take)
        bench.note({"losses": found})
    return {"items": bench.sizes.full_items, "losses": found}


CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "attention": attention,
    "precision": precision,
    "tables": tables,
    "full_softmax": full_softmax,
    "memory": memory,
    "throughput": throughput,
}


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def checked(name: str, bench: Bench) -> dict[str, Any]:
    """What a check gives, with its status: passed, or failed with what was wrong or a traceback."""
    began = time.perf_counter()
    try:
        found = CHECKS[name](bench)
        status = "failed" if found.get("wrong") else "passed"
    except Exception:
        found, status = {"traceback": traceback.format_exc()}, "failed"
    free(bench.device)
    result = {"status": status, "seconds": round(time.perf_counter() - began, 1), **found}
    bench.note(result)
    return result


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=150, help="of each check, about")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU; --device cpu tries the script in small sizes", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)
    sizes = sizes or (Sizes() if options.device == "cuda" else SMALL)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    with prepared("configs/demo.yaml", [*sizes.log, f"storage={options.out}"]) as config:
        data = config.data_folder
    checks = {}
    for name in options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        bench = Bench(data, device, sizes, time.perf_counter() + options.seconds, options.out / f"{name}.json")
        checks[name] = checked(name, bench)
        print(f"{name}: {checks[name]['status']}", file=sys.stderr, flush=True)
    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "checks": checks}
    print(json.dumps(header("gpu") | found, indent=1))
    return int(any(check["status"] == "failed" for check in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
