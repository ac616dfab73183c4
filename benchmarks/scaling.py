"""Training on more workers, and over vocabularies of up to millions of items."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import flops
from benchmarks.groups import Group, peak_memory
from benchmarks.training import Case, prepared, ratio_of, targets_of
from cluster.config import Config
from embeddings.workers import Worker, total
from ingest.arrays.jagged import offsets_of
from ingest.data.batch import Batch
from ingest.data.builder import BatchBuilder
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.reader_config import ReaderConfig
from ingest.data.schema import FIRST_VALUE
from ingest.data.shards import StoredRows
from trainer.models.sasrec import SASRecConfig
from trainer.step import Step
from trainer.train_config import LossConfig, TrainConfig


class Stream:
    """Steps as the trainer takes them, with its two exchanges of sums, over a stream of batches that has no end."""

    def __init__(self, step: Step, batches: Iterator[Batch]) -> None:
        self.step, self.batches, self.number = step, batches, 0
        self.targets, self.losses, self.seconds = 0, list[float](), list[float]()

    def take(self) -> None:
        began = time.perf_counter()
        batch = next(self.batches)
        own = float(batch.weight_Q.sum())
        weight = float(total(torch.tensor([own], dtype=torch.float64)))
        losses, _ = self.step.train(batch, self.number, weight)
        self.losses.append(float(total(losses.item.double())) / max(weight, 1e-12))
        self.number += 1
        self.targets += targets_of(batch)
        self.seconds.append(time.perf_counter() - began)

    def run(self, steps: int) -> dict[str, Any]:
        self.targets, self.losses, self.seconds = 0, [], []
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            self.take()
        dist.barrier()
        return {
            "seconds": time.perf_counter() - began,
            "targets": self.targets,
            "steps": self.seconds,
            "losses": self.losses,
            "peak_memory": peak_memory(),
        }

    def trace(self, steps: int) -> dict[str, Any]:
        profiler, times = flops.traced(self.step, self.take, steps)
        return {"by_layer": {label: sum(both) for label, both in times.items()}} | {
            "operators": flops.operators(profiler, steps)
        }


def _train(worker: Worker, config: dict[str, Any], model: str, live: bool, batches: int) -> Callable[..., Any]:
    """A stream of the config's training data, read while training goes on or made beforehand."""
    case = Case.of(Config.model_validate(config), model)
    if live:
        reader = case.reader(worker)
        stream = (batch for epoch in count() for batch, _ in reader.epoch(epoch))
    else:
        stream = cycle(case.batches(batches, worker))
    training = Stream(case.step(worker), stream)

    def call(steps: int, trace: bool = False) -> dict[str, Any]:
        return training.trace(steps) if trace else training.run(steps)

    return call


def measure_workers(options: argparse.Namespace) -> dict[str, Any]:
    """Targets a second of 2 workers with one thread each over those of 1 worker with one thread."""
    overrides = ["train.reader.tokens=8192", "train.reader.max_length=200", *options.overrides]
    found = {}
    with prepared(options.config, overrides) as config:
        for loss in options.losses:
            content = config.model_dump(mode="json", by_alias=True)
            content["train"]["loss"]["kind"] = loss
            found[loss] = _workers_with(content, options)
    return {
        "model": options.model,
        "threads_a_worker": 1,
        "tokens_a_worker": config.train_config(options.model).reader.tokens,
        "batches": "read while training goes on" if options.live else "made beforehand",
        "apart": "2 groups of one worker each at the same time, which exchange nothing: what the machine allows",
        "losses": found,
    }


def _workers_with(content: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    arguments = {"config": content, "model": options.model, "live": options.live, "batches": options.batches}
    one, other, pair = (Group(workers, 1, _train, **arguments) for workers in (1, 1, 2))
    rates: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    try:
        for number in range(options.rounds + 1):
            for name, groups in (("one", [one]), ("two", [pair]), ("apart", [one, other])):
                for group in groups:
                    group.ask(steps=options.batches)
                results = [group.result() for group in groups]
                rate = sum(sum(r["targets"] for r in ranks) / ranks[0]["seconds"] for ranks in results)
                if number:
                    rates[name].append(rate)
        traces = {}
        if options.trace:
            for name, group in (("one", one), ("two", pair)):
                traces[name] = group.call(steps=options.batches, trace=True)[0]
    finally:
        for group in (one, other, pair):
            group.close()
    return {
        "targets_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "two_over_one": ratio_of(rates["two"], rates["one"]),
        "apart_over_one": ratio_of(rates["apart"], rates["one"]),
    } | ({"trace": _compared(traces)} if traces else {})


def _compared(traces: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds a step by layer with 1 and with 2 workers (rank 0), the greatest difference first."""
    one, two = traces["one"]["by_layer"], traces["two"]["by_layer"]
    rows = [
        {"layer": label, "one_ms": round(one.get(label, 0.0), 2), "two_ms": round(two.get(label, 0.0), 2)}
        for label in {**one, **two}
    ]
    return {
        "by_layer": sorted(rows, key=lambda row: row["one_ms"] - row["two_ms"]),
        "operators_of_two": traces["two"]["operators"][:25],
    }


def _over(
    worker: Worker, items: int, dimension: int, tokens: int, negatives: int, batches: int
) -> Callable[..., dict[str, Any]]:
    """A stream of made batches over `items` items: histories of 2 to 201, items by popularity (Zipf) or uniform."""
    manifest = Manifest(
        items=items + FIRST_VALUE,
        features=[],
        time_unit="position",
        first_time=0,
        last_time=200,
        has_duration=False,
        split={},
        counts={},
        fingerprint="",
        shards={},
    )
    train = TrainConfig.model_validate(
        {
            "reader": ReaderConfig(tokens=tokens),
            "tables": {"dimension": dimension},
            "loss": LossConfig(kind="sampled", negatives=negatives),
        }
    )
    step = Step(SASRecConfig(), train, manifest, worker)
    streams = {
        draw: Stream(step, cycle([_made(manifest, tokens, draw, [worker.rank, number]) for number in range(batches)]))
        for draw in ("log_uniform", "uniform")
    }
    return lambda steps, draw: streams[draw].run(steps)


def _made(manifest: Manifest, tokens: int, draw: str, seed: list[int]) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 202, 2 * tokens // 100 + 2)
    lengths = lengths[: max(1, int(np.searchsorted(np.cumsum(lengths - 1), tokens)))]
    drawn, known = rng.random(lengths.sum()), manifest.items - FIRST_VALUE
    rank = drawn * known if draw == "uniform" else np.expm1(drawn * np.log1p(known))
    item = np.minimum(rank.astype(np.int64), known - 1) + FIRST_VALUE
    nothing = ItemTable(manifest.items, {}, np.zeros(0, dtype=np.int64))
    builder = BatchBuilder(manifest, nothing, max_length=200, windows=False, features=False)
    return builder.build(StoredRows([], lengths - 1, offsets_of(lengths), {"item": item, "time": np.arange(len(item))}))


def measure_vocabulary(options: argparse.Namespace) -> dict[str, Any]:
    """A step and the memory with 10 million items against 10 thousand; 20 million items train."""
    shape = {name: getattr(options, name) for name in ("dimension", "tokens", "negatives", "batches")}
    groups = {items: Group(options.workers, 1, _over, items=items, **shape) for items in (options.few, options.many)}
    draws = ("log_uniform", "uniform")
    seconds: dict[tuple[int, str], list[float]] = {(items, draw): [] for items in groups for draw in draws}
    memory: dict[int, int] = {}
    try:
        for number in range(options.rounds + 1):
            for draw in draws:
                for items, group in groups.items():
                    results = group.call(steps=options.batches, draw=draw)
                    memory[items] = sum(result["peak_memory"] for result in results)
                    if number:
                        seconds[items, draw].append(statistics.median(results[0]["steps"]))
    finally:
        for group in groups.values():
            group.close()
    table = options.many * (options.dimension + 1) * 4
    return {
        "workers": options.workers,
        "threads_a_worker": 1,
        **shape,
        "optimizer": "rowwise_adagrad: one number a row",
        "step_ms": {
            f"{items} {draw}": round(1000 * statistics.median(values), 1) for (items, draw), values in seconds.items()
        },
        "many_over_few": {draw: ratio_of(seconds[options.many, draw], seconds[options.few, draw]) for draw in draws},
        "memory": {
            "peak_gib": {str(items): round(size / 2**30, 3) for items, size in memory.items()},
            "table_and_optimizer_gib": round(table / 2**30, 3),
            "more_than_few_over_table": round((memory[options.many] - memory[options.few]) / table, 3),
            "over_table_and_few": round(memory[options.many] / (table + memory[options.few]), 3),
            "counts": "sum of the workers' peaks, each in its whole life (start included), shared pages in both",
        },
        "most": _most(options, shape),
    }


def _most(options: argparse.Namespace, shape: dict[str, int]) -> dict[str, Any]:
    """Steps over the largest vocabulary: the losses of the first and the last, and what they take."""
    began = time.perf_counter()
    group = Group(options.workers, 1, _over, items=options.most, **shape)
    ready = time.perf_counter() - began
    try:
        results = group.call(steps=options.steps, draw="log_uniform")
    finally:
        group.close()
    losses, batches = results[0]["losses"], options.batches
    return {
        "items": options.most,
        "steps": options.steps,
        "seconds_to_start": round(ready, 1),
        "step_ms": round(1000 * statistics.median(results[0]["steps"]), 1),
        "loss_first": round(statistics.mean(losses[:batches]), 4),
        "loss_last": round(statistics.mean(losses[-batches:]), 4),
        "finite_and_falling": bool(np.isfinite(losses).all() and losses[-1] < losses[0]),
        "peak_gib": round(sum(result["peak_memory"] for result in results) / 2**30, 3),
    }
