"""What a checkpoint costs the training beside which it is written. Prints JSON.

    python -m benchmarks.checkpoints [--items N] [--dimension D] [--workers W] [--folder FOLDER]

Stretches of the same number of steps take turns, with a checkpoint that begins with the stretch and without one. What
the one takes longer is the checkpoint's whole cost, copy and writing, where it is complete before the stretch ends.
Where others work on the machine, the processor time that all workers take more is the steadier figure: divided by the
cores, it is what a checkpoint costs steps that keep all cores busy.
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
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress
from trainer.train_config import TrainConfig

MINUTE = 60.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        size = {"items": options.items, "dimension": options.dimension}
        with group(options.workers, _train, folder=folder, **size) as ask:
            results(ask(steps=options.warm_up, saves=True))
            without = results(ask(steps=options.warm_up, saves=False))[0]["seconds"]
            steps = max(int(options.seconds / without * options.warm_up), 1)
            rounds = [
                {saves: results(ask(steps=steps, saves=saves)) for saves in (False, True)}
                for _ in range(options.rounds)
            ]
    more = [sum(rank["cpu"] for rank in each[True]) - sum(rank["cpu"] for rank in each[False]) for each in rounds]
    first = [{saves: ranks[0] for saves, ranks in each.items()} for each in rounds]
    longer = [each[True]["seconds"] - each[False]["seconds"] for each in first]
    last = rounds[-1][True]
    return {
        "setting": size | {"workers": options.workers, "tokens": TOKENS, "negatives": NEGATIVES, "draw": DRAWS[1]},
        "stretch": {"steps": steps, "seconds": [round(each[False]["seconds"], 2) for each in first]},
        "seconds_longer": [round(each, 2) for each in longer],
        "share_of_a_minute": _shares([each / MINUTE for each in longer]),
        "processor_seconds_more": [round(each, 2) for each in more],
        "processor_share_of_a_minute": _shares([each / MINUTE / options.workers for each in more]),
        "copy_seconds": [round(each[True]["copy"], 2) for each in first],
        "first_copy_seconds": round(first[0][True]["first_copy"], 2),
        "complete_seconds": [round(each[True]["complete"], 2) for each in first],
        "complete_within_the_stretch": all(each[True]["complete"] < each[True]["seconds"] for each in first),
        "copy_gib_a_worker": round(max(rank["copy_gib"] for rank in last), 3),
        "peak_gib_of_all_workers": round(sum(rank["peak"] for rank in last) / 2**30, 2),
    }


def _shares(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 4),
        "range": [round(value, 4) for value in (min(values), max(values))],
    }


def _train(worker: Worker, folder: str, items: int, dimension: int) -> Callable[..., dict[str, Any]]:
    training = trainings_over(worker, items, dimension, batches=64)[DRAWS[1]]
    checkpoints = Checkpoints(folder, TrainConfig(keep=1), worker)
    figures: dict[str, float] = {}

    def call(steps: int, saves: bool) -> dict[str, Any]:
        dist.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        if saves:
            checkpoints.save(training.step, Progress(step=training.number), {})
        for _ in range(steps):
            training.take()
            checkpoints.ask()
        dist.barrier()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        checkpoints.wait()
        figures.update({name.removeprefix("checkpoint/"): value for name, value in checkpoints.figures.items()})
        figures.setdefault("first copy", figures.get("copy(s)", 0.0))
        return {
            "seconds": seconds,
            "cpu": cpu,
            "copy": figures.get("copy(s)", 0.0),
            "first_copy": figures["first copy"],
            "complete": figures.get("complete(s)", 0.0),
            "copy_gib": figures.get("copy(GiB)", 0.0),
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30, help="of a stretch, about")
    parser.add_argument("--warm-up", type=int, default=20, help="steps")
    options = parser.parse_args()
    print(json.dumps(header("checkpoints") | measure(options), indent=1))


if __name__ == "__main__":
    main()
