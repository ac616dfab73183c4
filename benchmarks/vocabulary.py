"""`python -m benchmarks.train vocabulary`: a step and the memory must not grow with the items but for their rows."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.groups import group, peak_memory, results
from benchmarks.training import Training, in_turns, ratio_of
from embeddings.workers import Worker
from ingest.arrays.jagged import offsets_of
from ingest.data.batch import Batch
from ingest.data.builder import BatchBuilder
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.shards import StoredRows
from ingest.features.feature import FIRST_VALUE
from trainer.models.sasrec import SASRecConfig
from trainer.step import Step
from trainer.train_config import TrainConfig

WORKERS, DIMENSION, TOKENS, NEGATIVES, BATCHES = 2, 64, 4096, 1024, 8
DRAWS = ("log_uniform", "uniform")


def measure_vocabulary(options: argparse.Namespace) -> dict[str, Any]:
    """A step and the memory with 10 million items against 10 thousand; 20 million items train."""
    few, many, most = options.items
    with ExitStack() as stack:
        groups = {items: stack.enter_context(group(WORKERS, _over, items=items)) for items in (few, many)}

        def median(items: int, draw: str) -> float:
            return statistics.median(results(groups[items](steps=BATCHES, draw=draw))[0]["seconds"])

        sides = {(items, draw): lambda i=items, d=draw: median(i, d) for draw in DRAWS for items in groups}
        seconds = in_turns(options.rounds, sides)  # type: ignore[arg-type,type-var]
        memory = {items: sum(found["peak"] for found in results(ask(steps=1))) for items, ask in groups.items()}
    table = many * (DIMENSION + 1) * 4
    return {
        "setting": {"workers": WORKERS, "dimension": DIMENSION, "tokens": TOKENS, "negatives": NEGATIVES},
        "step_ms": {f"{key[0]} {key[1]}": round(1000 * statistics.median(found), 1) for key, found in seconds.items()},
        "many_over_few": {draw: ratio_of(seconds[many, draw], seconds[few, draw]) for draw in DRAWS},
        "memory": {
            "peak_gib": {str(items): round(size / 2**30, 3) for items, size in memory.items()},
            "table_and_optimizer_gib": round(table / 2**30, 3),
            "over_table_and_few": round(memory[many] / (table + memory[few]), 3),
        },
        "most": _most(most, options.steps),
    }


def _most(items: int, steps: int) -> dict[str, Any]:
    """Steps over the largest vocabulary: the losses of the first and the last, and what they take."""
    began = time.perf_counter()
    with group(WORKERS, _over, items=items) as ask:
        ready = time.perf_counter() - began
        ranks = results(ask(steps=steps))
    losses = ranks[0]["losses"]
    return {
        "items": items,
        "steps": steps,
        "seconds_to_start": round(ready, 1),
        "step_ms": round(1000 * statistics.median(ranks[0]["seconds"]), 1),
        "loss_first": round(statistics.mean(losses[:BATCHES]), 4),
        "loss_last": round(statistics.mean(losses[-BATCHES:]), 4),
        "peak_gib": round(sum(found["peak"] for found in ranks) / 2**30, 3),
    }


def _over(worker: Worker, items: int) -> Callable[..., dict[str, Any]]:
    trainings = trainings_over(worker, items)

    def call(steps: int, draw: str = DRAWS[0]) -> dict[str, Any]:
        training = trainings[draw]
        seconds = training.seconds(steps)
        return {"seconds": seconds, "losses": training.losses[-steps:], "peak": peak_memory()}

    return call


def trainings_over(
    worker: Worker, items: int, dimension: int = DIMENSION, batches: int = BATCHES
) -> dict[str, Training]:
    """Trainings of one step over made batches of `items` items: histories of 2 to 201, items by popularity (Zipf) or
    uniform."""
    content: dict[str, Any] = {"time_unit": "position", "first_time": 0, "last_time": 200, "has_duration": False}
    content |= {
        "items": items + FIRST_VALUE,
        "catalogue": items + FIRST_VALUE,
        "features": [],
        "split": {},
        "counts": {},
        "fingerprint": "",
        "shards": {},
    }
    manifest = Manifest.model_validate(content)
    loss = {"kind": "sampled", "negatives": NEGATIVES}
    config = {"reader": {"tokens": TOKENS}, "tables": {"dimension": dimension}, "loss": loss}
    step = Step(SASRecConfig(), TrainConfig.model_validate(config), manifest, worker)
    made = {draw: [_made(manifest, draw, [worker.rank, number]) for number in range(batches)] for draw in DRAWS}
    return {draw: Training(step, cycle(batches)) for draw, batches in made.items()}


def _made(manifest: Manifest, draw: str, seed: list[int]) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 202, 2 * TOKENS // 100 + 2)
    lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths - 1), TOKENS)))]
    drawn, known = rng.random(lengths.sum()), manifest.items - FIRST_VALUE
    rank = drawn * known if draw == "uniform" else np.expm1(drawn * np.log1p(known))
    item = np.minimum(rank.astype(np.int64), known - 1) + FIRST_VALUE
    nothing = ItemTable(manifest.items, {}, np.zeros(0, dtype=np.int64))
    builder = BatchBuilder(manifest, nothing, max_length=200, windows=False, features=False)
    return builder.build(StoredRows([], lengths - 1, offsets_of(lengths), {"item": item, "time": np.arange(len(item))}))
