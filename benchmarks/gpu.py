"""All checks that need a GPU, in one go. Prints JSON and writes it to --out; status 1 where a check failed.

    python -m benchmarks.gpu                          on the first GPU, in under 8 minutes
    python -m benchmarks.gpu --device cpu             the same checks in small sizes, to try the script itself
    python -m benchmarks.gpu --only attention tables  some of them
    python -m benchmarks.gpu --ml-1m FOLDER_OR_ZIP    MovieLens 1M besides: NDCG@10 over the whole catalogue

    attention     the kernels against the CPU in fp32, forward and gradients
    precision     a bf16 step against the fp32 step
    tables        a step of TorchRec's tables and their optimizers on the GPU against the CPU
    full_softmax  time and memory against sampled negatives, with a million items
    memory        a step's time and memory with 10 thousand, 10 million and 100 million items
    throughput    tokens a second and share of the best bf16 matrix product (MFU)
    ml_1m         accuracy, with --ml-1m

On a GPU every check is a process of its own: one that crashes or hangs is reported, and the others go on. A check
leaves out what it has no time for; one that is ended has what it found until then.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gpu_checks import LARGE, SMALL, Bench, Sizes
from benchmarks.training import Case, header, prepared

CHECKS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "attention": gpu_checks.attention,
    "precision": gpu_checks.precision,
    "tables": gpu_checks.tables,
    "full_softmax": gpu_speed.full_softmax,
    "memory": gpu_speed.memory,
    "throughput": gpu_speed.throughput,
    "ml_1m": gpu_speed.ml_1m,
}
SECONDS = {"attention": 30, "precision": 40, "tables": 60, "full_softmax": 40, "memory": 170, "throughput": 170}
"""What a check may take at most; it is ended `GRACE` later, which is also for starting the process."""
GRACE = {"cuda": 45, "cpu": 300}
ALL_SECONDS = 380
"""What all of them may take, but for MovieLens."""
ML_1M_SECONDS = 3600


def checked(name: str, bench: Bench) -> dict[str, Any]:
    """What a check gives, with its status: passed, failed (with what was wrong, or a traceback) or skipped."""
    began = time.perf_counter()
    try:
        found = CHECKS[name](bench)
        status = "skipped" if "skipped" in found else "failed" if found.get("wrong") else "passed"
    except Exception:
        found, status = {"traceback": traceback.format_exc()}, "failed"
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"status": status, "seconds": round(time.perf_counter() - began, 1), **found}


def in_own_process(name: str, data: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The same, in a new process."""
    limit = seconds + GRACE[options.device]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", options.device, "--only", name, "--in-process"]
        command += ["--data", data, "--out", str(out), "--epochs", str(options.epochs), "--seconds", str(seconds)]
        command += ["--ml-1m", options.ml_1m] if options.ml_1m else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            reason = f"status {done.returncode}: {done.stderr[-4000:]}"
        except subprocess.TimeoutExpired:
            reason = f"ended after {limit:.0f} seconds"
        found = dict(json.loads(out.read_text())["checks"][name]) if out.exists() else {}
        return found if "status" in found else {"status": "failed", "traceback": reason, **found}


def run(options: argparse.Namespace, data: str, sizes: Sizes) -> dict[str, Any]:
    """All checks that are asked for."""
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    found: dict[str, dict[str, Any]] = {}
    ends = time.perf_counter() + (options.seconds or ALL_SECONDS)
    for name in options.only or CHECKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        left = max(min(SECONDS[name], ends - time.perf_counter()), 5) if name in SECONDS else ML_1M_SECONDS
        if options.in_process:
            bench = Bench(data, device, sizes, time.perf_counter() + left, options.ml_1m, options.epochs)
            if options.out:
                bench = replace(bench, note=functools.partial(_keep, options.out, name))
            found[name] = checked(name, bench)
        else:
            found[name] = in_own_process(name, data, options, left)
        print(f"{name}: {found[name]['status']}", file=sys.stderr, flush=True)
    return {"device": gpu_checks.describe(device), "checks": found}


def _keep(path: str, name: str, found: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps({"checks": {name: found}}))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="CHECK")
    made.add_argument("--out", help="a file for the JSON")
    made.add_argument("--data", help="a prepared data set; by default the demo's is made")
    made.add_argument("--ml-1m", help="MovieLens 1M as its folder or .zip")
    made.add_argument("--epochs", type=int, default=20, help="of --ml-1m")
    made.add_argument("--seconds", type=float, help="for all checks together but --ml-1m")
    made.add_argument("--in-process", action="store_true", help="all checks in this process")
    return made


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU; --device cpu tries the script in small sizes", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)
    sizes = sizes or (LARGE if options.device == "cuda" else SMALL)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if options.data:
        found = run(options, options.data, sizes)
    else:
        with prepared("configs/demo.yaml", sizes.log) as config:
            found = run(options, Case.of(config, "intentrec").data, sizes)
    text = json.dumps(header("gpu") | found, indent=1)
    print(text)
    if options.out:
        Path(options.out).write_text(text)
    return int(any(check["status"] == "failed" for check in found["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
