"""All that is to be found out on a GPU, in parts that can be run alone. Prints JSON; status 1 where a part failed.

    for part in attention precision tables waiting throughput full_softmax memory reading profile; do
        timeout 160 python -m benchmarks.gpu --out FOLDER --part $part; done        # one that crashes ends alone
    python -m benchmarks.gpu --out FOLDER --dry     the same parts in small sizes on a CPU, to try the script itself

    attention     the kernels against the CPU in fp32, forward and gradients
    precision     a bf16 step against the fp32 step
    tables        a step of TorchRec's tables, their optimizers and memories on the GPU against the CPU
    waiting       no call of a step waits for the device
    throughput    targets a second and MFU by model, dimension, length, batch and catalogue
    full_softmax  time and memory against sampled negatives, with a million items
    memory        a step's time and memory with 10 thousand, 10 million and 100 million items
    reading       what the reader gives against what a step takes
    profile       the operations that take longest, and traces

All parts together end within 8 minutes: each has the seconds of `PARTS` and leaves out what it has no time for. What a
part finds is in FOLDER/<part>.json as it goes. The data are made in FOLDER once. Besides, a GPU is for the tests that
skip without one (pytest tests/trainer/test_device.py tests/embeddings/test_sharding.py), `make demo`, and accuracy:
`benchmarks.main_job` with `cluster.gpus=true train.precision=bf16`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_checks import SMALL, Bench, Sizes, attention, free, moved, precision, tables
from benchmarks.gpu_rates import Steps, profiled, reading, throughput, timed, waiting
from benchmarks.training import header, prepared
from embeddings.table_config import ITEM
from embeddings.workers import Worker, single_process
from ingest.errors import InputError

GIB = 2**30


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
            try:
                with single_process(bench.device):
                    case, batch = moved(case, rows, case.batches(1, Worker())[0])
                    found |= timed(bench, Steps(case, batch, bench.device).take)
            except torch.OutOfMemoryError:
                found["skipped"] = "out of memory"
            except InputError as error:  # the plan does not fit
                found["skipped"] = str(error)
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
            found[name] = timed(bench, Steps(case, batch, bench.device).take)
        free(bench.device)
        bench.note({"losses": found})
    return {"items": bench.sizes.full_items, "losses": found}


PARTS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "attention": (attention, 20),
    "precision": (precision, 30),
    "tables": (tables, 60),
    "waiting": (waiting, 20),
    "throughput": (throughput, 150),
    "full_softmax": (full_softmax, 30),
    "memory": (memory, 60),
    "reading": (reading, 30),
    "profile": (profiled, 30),
}
"""With about how many seconds each may take."""


def checked(name: str, bench: Bench) -> dict[str, Any]:
    """What a check gives, with its status: passed, or failed with what was wrong or a traceback."""
    began = time.perf_counter()
    try:
        found = PARTS[name][0](bench)
        status = "failed" if found.get("wrong") else "passed"
    except Exception:
        found, status = bench.noted() | {"traceback": traceback.format_exc()}, "failed"
    free(bench.device)
    result = {"status": status, "seconds": round(time.perf_counter() - began, 1), **found}
    bench.note(result)
    return result


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="small sizes, on a CPU")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA GPU; --dry tries the script in small sizes on a CPU", file=sys.stderr)
        return 2
    logging.disable(logging.WARNING)
    sizes = sizes or (SMALL if options.dry else Sizes())
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cpu") if options.dry else torch.device("cuda", 0)
    options.out.mkdir(parents=True, exist_ok=True)
    with prepared("configs/demo.yaml", [*sizes.log, f"storage={options.out}"]) as config:
        data = config.data_folder
    checks = {}
    for name in options.part:
        print(f"{name} ...", file=sys.stderr, flush=True)
        bench = Bench(data, device, sizes, time.perf_counter() + PARTS[name][1], options.out / f"{name}.json")
        bench.path.unlink(missing_ok=True)
        checks[name] = checked(name, bench)
        print(f"{name}: {checks[name]['status']}", file=sys.stderr, flush=True)
    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "checks": checks}
    print(json.dumps(header("gpu") | found, indent=1))
    return int(any(check["status"] == "failed" for check in checks.values()))


if __name__ == "__main__":
    sys.exit(main())
