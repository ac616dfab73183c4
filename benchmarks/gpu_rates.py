"""The parts of benchmarks/gpu.py that say how fast a GPU trains, and whether its host waits for it.

    MFU = useful FLOPs of a step / (its seconds x the card's bf16 FLOP/s by its data sheet)

Useful FLOPs are those of the matrix products that the mathematics needs, forward, and twice that backward:

    6 for each token and weight of the network's linear layers
    12 D for each layer of attention, token and place that the token sees (two products of 2 D)
    6 D for each score of the loss

So neither padding, nor the masked half, nor what is computed a second time counts, nor do the layer of a window,
lookups, norms, softmax and optimizer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_checks import Bench, free, moved
from benchmarks.training import Case, targets_of
from embeddings.workers import Worker, single_process, total
from ingest.data.batch import Batch
from ingest.errors import InputError
from trainer.layers import Transformer
from trainer.step import Prepared, Step

GIB = 2**30
WARM_UP, ROUNDS = 3, 3
BF16_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
}
"""Dense, of the data sheets, by what is in the card's name."""


class Steps:
    """Steps over one batch again and again as the trainer takes them: each is prepared before the one before is
    taken."""

    def __init__(self, case: Case, batch: Batch, device: torch.device) -> None:
        self.step = case.step(Worker(device=device))
        batch = self.step.asking(batch, 0)
        self.weights = self.step.weights_of(batch).tolist()
        with torch.cuda.stream(self.step.side):
            self.batch = batch.to(device)
        self.number, self.prepared = 0, self.step.prepare(self.batch, 0)

    def take(self) -> Tensor:
        """The sum of the losses, which the device may be at work on still."""
        now, self.prepared = self.prepared, self.step.prepare(self.batch, self.number + 1)
        losses, _ = self.step.train(self.batch, self.number, self.weights, 0, now)
        self.number += 1
        return total(torch.stack([losses.item, *losses.intents.values()]))


def timed(bench: Bench, call: Callable[[], Any]) -> dict[str, Any]:
    """The time of a call, and peak memory: the median of rounds of `bench.sizes.steps` calls after a warm-up, with one
    wait for the device in each."""
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    found = []
    for number in range(1 + ROUNDS):
        calls = bench.sizes.steps if number else WARM_UP
        began = time.perf_counter()
        for _ in range(calls):
            call()
        if cuda:
            torch.cuda.synchronize(bench.device)
        if number:
            found.append((time.perf_counter() - began) / calls)
        if bench.late and found:
            break
    peak = round(torch.cuda.max_memory_allocated(bench.device) / GIB, 3) if cuda else None
    return {"step_ms": round(1e3 * statistics.median(found), 3), "peak_gib": peak}


def useful_flops(step: Step, batch: Batch, prepared: Prepared) -> float:
    """See the head of this file. `prepared`: a step on the batch, of whose negatives each is scored once however often
    it was drawn."""
    network, dimension = step.recommender.network, step.config.tables.dimension
    weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    layers = sum(_layers(module) for module in network.modules())
    seen = float((batch.lengths_B * (batch.lengths_B + 1)).sum()) / 2
    items = len(step.slice_v) if prepared.negatives is None else len(prepared.negatives.item_N)
    scores = float(len(batch.target_Q) * items)
    return 6.0 * batch.tokens * weights + 12.0 * dimension * layers * seen + 6.0 * dimension * scores


def _layers(module: nn.Module) -> int:
    """Layers of attention that see a whole sequence, directly in `module`."""
    if isinstance(module, Transformer):
        return len(module.blocks)
    return int(hasattr(module, "uvqk"))  # a block of HSTU's


def long(batch: Batch, length: int) -> Batch:
    """The batch's tokens as sequences of `length`, and the shorter rest before them."""
    whole, rest = divmod(batch.tokens, length)
    lengths_B = torch.tensor([rest] * (rest > 0) + [length] * whole)
    position_T = torch.cat([torch.arange(int(each)) for each in lengths_B])
    return replace(batch, lengths_B=lengths_B, position_T=position_T, time_T=batch.time_T.sort().values)


def _grid(bench: Bench) -> Iterator[dict[str, Any]]:
    """Cases in the order of what they are worth, should there be no time for all."""
    sizes = bench.sizes
    plain = {"tokens": sizes.tokens, "length": None, "items": sizes.full_items}
    for dimension in reversed(sizes.dimensions):
        yield from ({"model": model, "dimension": dimension} | plain for model in MODELS)
    middle = sizes.dimensions[len(sizes.dimensions) // 2]
    other: list[dict[str, Any]] = [{"length": sizes.long}, *({"tokens": tokens} for tokens in sizes.batches)]
    for change in other:
        yield from ({"model": model, "dimension": middle} | plain | change for model in MODELS)
    yield {"model": "sasrec", "dimension": sizes.dimensions[0]} | plain | {"items": sizes.rows[-1]}


MODELS = ("sasrec", "hstu", "intentrec")


def throughput(bench: Bench) -> dict[str, Any]:
    """Targets a second, MFU and memory of whole steps in bf16 by model, dimension, length, batch and catalogue."""
    best, peak = best_matmul(bench), card_flops(bench.device)
    result: dict[str, Any] = {"best_bf16_matmul_tflops": round(best / 1e12, 3), "cases": []}
    result["bf16_tflops_of_the_data_sheet"] = None if peak is None else peak / 1e12
    for found in _grid(bench):
        result["cases"].append(found)
        if bench.late:
            found["skipped"] = "no time left"
            continue
        length, train = found["length"], {"precision": "bf16", "tokens": found["tokens"]}
        case = bench.case(found["model"], found["dimension"], 0.1, length=length or bench.sizes.longest, **train)
        steps: Steps | None = None
        try:
            with single_process(bench.device):
                case, batch = moved(case, found["items"], case.batches(1, Worker())[0])
                batch = long(batch, length) if length else batch
                steps = Steps(case, batch, bench.device)
                found |= {"tokens": batch.tokens} | timed(bench, steps.take)
                flops = useful_flops(steps.step, steps.step.asking(batch, 0), steps.prepared)
                useful = flops / found["step_ms"] * 1e3
        except (torch.OutOfMemoryError, InputError) as error:
            found["skipped"] = f"does not fit: {str(error).splitlines()[0]}"
            continue
        finally:
            steps = None
            free(bench.device)
        found["targets_per_second"] = round(1e3 * targets_of(batch) / found["step_ms"])
        found |= {"useful_tflops": round(useful / 1e12, 4), "of_best_matmul": round(useful / best, 4)}
        found["mfu"] = None if peak is None else round(useful / peak, 4)
        bench.note(result)
    return result


def best_matmul(bench: Bench) -> float:
    """FLOP/s of a large product in bf16."""
    size = bench.sizes.tokens // 8
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2e3 * size**3 / timed(bench, lambda: torch.matmul(a, b))["step_ms"]


def card_flops(device: torch.device) -> float | None:
    """None for a card that is not in `BF16_FLOPS`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for card, flops in BF16_FLOPS.items() if card in name), None)


def waiting(bench: Bench) -> dict[str, Any]:
    """Steps in which no call may wait for the device: CUDA itself raises where one does."""
    wrong: list[str] = []
    tried: list[str] = []
    for model in MODELS:
        if bench.late:
            break
        with single_process(bench.device):
            case = bench.case(model, bench.sizes.dimensions[0], precision="bf16")
            steps = Steps(case, case.batches(1, Worker())[0], bench.device)
            for _ in range(WARM_UP):
                steps.take()
            now, steps.prepared = steps.prepared, steps.step.prepare(steps.batch, steps.number + 1)
            try:
                if bench.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                steps.step.train(steps.batch, steps.number, steps.weights, 0, now)
            except RuntimeError as error:
                wrong.append(f"{model}: {error}")
            finally:
                if bench.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        tried.append(model)
        bench.note({"models": tried, "wrong": wrong})
    return {"models": tried, "wrong": wrong}


def reading(bench: Bench) -> dict[str, Any]:
    """What the reader gives a second against what a step takes: below 1 the device waits for data."""
    found: dict[str, Any] = {"cases": []}
    for model in ("sasrec", "intentrec"):
        if bench.late:
            break
        case = bench.case(model, bench.sizes.dimensions[-1], precision="bf16")
        began, tokens = time.perf_counter(), 0
        for batch, _ in islice(case.reader(Worker()).epoch(0), bench.sizes.steps):
            tokens += batch.tokens
        read = tokens / (time.perf_counter() - began)
        with single_process(bench.device):
            taken = 1e3 * batch.tokens / timed(bench, Steps(case, batch, bench.device).take)["step_ms"]
        rates = {"read_tokens_per_second": round(read), "trained_tokens_per_second": round(taken)}
        found["cases"].append({"model": model, **rates, "read_over_trained": round(read / taken, 3)})
        bench.note(found)
    return found


def profiled(bench: Bench) -> dict[str, Any]:
    """A profile of steps of each model: the operations that take longest, and a trace of them beside the figures."""
    cuda = bench.device.type == "cuda"
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    found: dict[str, Any] = {}
    for model in MODELS:
        if bench.late:
            break
        with single_process(bench.device):
            case = bench.case(model, bench.sizes.dimensions[-1], precision="bf16")
            steps = Steps(case, case.batches(1, Worker())[0], bench.device)
            for _ in range(WARM_UP):
                steps.take()
            with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as taken:
                steps.take().tolist()
        taken.export_chrome_trace(str(bench.path.with_name(f"profile-{model}.trace.json")))
        events = sorted(taken.key_averages(), key=lambda event: -getattr(event, key))[:12]
        found[model] = {event.key: round(getattr(event, key) / 1e3, 3) for event in events}
        bench.note({"ms": found})
    return {"ms": found}
