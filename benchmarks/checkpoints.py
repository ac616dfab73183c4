"""What a checkpoint costs the training beside which it is written. Prints JSON.

    python -m benchmarks.checkpoints [--items N] [--dimension D] [--workers W] [--folder FOLDER]

Stretches of the same number of steps take turns: without a checkpoint, with a whole one that begins with the stretch,
and with one of the rows that have changed in the stretch before. What one takes longer than without is the checkpoint's
whole cost, copy and writing, where it is complete before the stretch ends. Where others work on the machine, the
processor time that all workers take more is the steadier figure: divided by the cores, it is what a checkpoint costs
steps that keep all cores busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from benchmarks.groups import group, peak_memory, results
from benchmarks.training import header
from benchmarks.vocabulary import DRAWS, NEGATIVES, TOKENS, trainings_over
from embeddings.workers import Worker
from ingest.storage import join, size_of
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress
from trainer.train_config import TrainConfig

MINUTE = 60.0
WHOLE, CHANGED = "whole", "changed"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        size = {"items": options.items, "dimension": options.dimension}
        with group(options.workers, _train, folder=folder, draw=options.draw, **size) as ask:
            first = results(ask(steps=options.warm_up, saves=WHOLE))
            without = results(ask(steps=options.warm_up, saves=None))[0]["seconds"]
            steps = max(int(options.seconds / without * options.warm_up), 1)
            rounds = [
                {saves: results(ask(steps=steps, saves=saves)) for saves in (None, WHOLE, CHANGED)}
                for _ in range(options.rounds)
            ]
    plain = [each[None] for each in rounds]
    return {
        "setting": size | {"workers": options.workers, "tokens": TOKENS, "negatives": NEGATIVES, "draw": options.draw},
        "stretch": {"steps": steps, "seconds": [round(each[0]["seconds"], 2) for each in plain]},
        "first_copy_seconds": round(first[0]["copy"], 2),
        **{kind: _costs([each[kind] for each in rounds], plain, options.workers) for kind in (WHOLE, CHANGED)},
        "copy_gib_a_worker": round(max(rank["copy_gib"] for rank in rounds[-1][WHOLE]), 3),
        "peak_gib_of_all_workers": round(sum(rank["peak"] for rank in rounds[-1][CHANGED]) / 2**30, 2),
    }


def _costs(found: list[list[dict[str, Any]]], plain: list[list[dict[str, Any]]], workers: int) -> dict[str, Any]:
    """Of one kind of checkpoint: what each worker of each stretch found, beside the stretches without."""
    pairs = list(zip(found, plain, strict=True))
    more = [sum(rank["cpu"] for rank in each) - sum(rank["cpu"] for rank in other) for each, other in pairs]
    longer = [each[0]["seconds"] - other[0]["seconds"] for each, other in pairs]
    return {
        "written_gib": [round(sum(rank["written"] for rank in each) / 2**30, 3) for each in found],
        "seconds_longer": [round(each, 2) for each in longer],
        "share_of_a_minute": _shares([each / MINUTE for each in longer]),
        "processor_seconds_more": [round(each, 2) for each in more],
        "processor_share_of_a_minute": _shares([each / MINUTE / workers for each in more]),
        "copy_seconds": [round(each[0]["copy"], 2) for each in found],
        "complete_seconds": [round(each[0]["complete"], 2) for each in found],
        "complete_within_the_stretch": all(each[0]["complete"] < each[0]["seconds"] for each in found),
    }


def _shares(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4),
        "range": [round(value, 4) for value in (min(values), max(values))],
    }


def _train(worker: Worker, folder: str, items: int, dimension: int, draw: str) -> Callable[..., dict[str, Any]]:
    training = trainings_over(worker, items, dimension, batches=64)[draw]
    checkpoints = Checkpoints(folder, TrainConfig(keep=1), worker)

    def call(steps: int, saves: str | None) -> dict[str, Any]:
        dist.barrier()
        checkpoints.figures.clear()
        began, cpu = time.perf_counter(), time.process_time()
        if saves:
            if saves == WHOLE:
                checkpoints.base = None
            checkpoints.save(training.step, Progress(step=training.number), {})
        for _ in range(steps):
            training.take()
            checkpoints.ask()
        dist.barrier()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        checkpoints.wait()
        written, latest = 0, str(checkpoints.latest())
        if saves:
            marker = checkpoints.marker(latest)
            assert ("base" in marker) == (saves == CHANGED), "half of the rows have changed"
            written = size_of(join(folder, latest, f"{marker['pieces'][worker.rank]}.bin"))
        return {
            "seconds": seconds,
            "cpu": cpu,
            "copy": checkpoints.figures.get("checkpoint/copy(s)", 0.0),
            "complete": checkpoints.figures.get("checkpoint/complete(s)", 0.0),
            "copy_gib": checkpoints.figures.get("checkpoint/copy(GiB)", 0.0),
            "written": written,
            "peak": peak_memory(),
        }

    return call


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--folder", help="or s3:// URL in which checkpoints are left; by default a temporary one")
    parser.add_argument("--draw", choices=DRAWS, default=DRAWS[1], help="of the items that are trained")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30, help="of a stretch, about")
    parser.add_argument("--warm-up", type=int, default=20, help="steps")
    options = parser.parse_args()
    print(json.dumps(header("checkpoints") | measure(options), indent=1))


if __name__ == "__main__":
    main()
