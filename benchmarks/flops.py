"""Matrix FLOPs of a model by layer, and the time that its layers take in a training step.

A multiplication and an addition are two FLOPs. Counted is what is needed: real tokens and no padding, causal pairs
only (in the short-term encoder those in the window), the backward pass as the gradients of both factors where both are
needed. A kernel that computes the score matrix again in the backward pass gets no credit for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import trainer.models.deep
import trainer.models.intentrec
import trainer.step
from ingest.data.batch import Batch
from trainer.attention import CausalAttention
from trainer.layers import Joined, ShortTerm, TimestampEncoding
from trainer.models.intentrec import network_class
from trainer.step import Step

MARK = "layer "
SCORES = "scores and values"
PROJECTED = "encoders' inputs: products with F"
INTENTS = "intents: heads and aggregation"
OUTPUT = "output layer and loss"
"""The item table's rows against the queries, and the intents' losses."""
TABLES = "tables: lookup, exchange, update"
OPTIMIZER = "optimizer of the dense part"
ACCUMULATE = "gradients put together (DDP)"
REST = "the rest of the step"
OUTSIDE = {OUTPUT, TABLES, OPTIMIZER, ACCUMULATE, REST}
"""Rows of the table that are not the network's."""
Flops = dict[str, tuple[float, float]]
"""Of the forward and of the backward pass, by layer."""


def labels_of(network: nn.Module) -> dict[str, str]:
    """A label for each module, by its name: the same for all blocks, heads and encoders of a kind."""
    labels = {}
    for name, module in network.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            path = re.sub(r"\.blocks\b", "", re.sub(r"\.\d+", "", name))
            path = re.sub(r"^((intent_heads|projections)\..*|attention)$", INTENTS, path)
            kind = f" {type(module).__name__}" if "feed_forward" in path or "bridge" in path else ""
            labels[name] = path + kind
    return labels


def needed_flops(step: Step, batch: Batch, windows: bool = True) -> Flops:
    """Matrix FLOPs of one step on `batch`; without `windows` all causal pairs of the short-term encoder."""
    network = step.recommender.network
    labels = labels_of(network)
    found: Flops = {}

    def add(label: str, forward: float, backward: float) -> None:
        before = found.get(label, (0.0, 0.0))
        found[label] = before[0] + forward, before[1] + backward

    inside_window = {
        f"{name}.attention": module.window
        for name, module in network.named_modules()
        if windows and isinstance(module, ShortTerm)
    }
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            owner = network.get_submodule(name.rpartition(".")[0])
            width = module.in_features
            if isinstance(owner, Joined):
                projected = 2.0 * batch.tokens * owner.widths[0] * module.out_features
                add(PROJECTED, projected, 2 * projected)
                width -= owner.widths[0]
            elif isinstance(network, network_class()) and name == "attention":
                width = sum(network.labels)
            forward = 2.0 * batch.tokens * width * module.out_features
            label = labels[name].removesuffix(".linear")
            add(label, forward, forward if isinstance(owner, TimestampEncoding) else 2 * forward)
        elif isinstance(module, CausalAttention):
            pairs = _pairs(batch, inside_window.get(name))
            forward = 4.0 * pairs * module.out.in_features
            add(f"{labels[name]}: {SCORES}", forward, 2 * forward)
    targets, dimension = len(batch.target_Q), step.config.tables.dimension
    full = step.config.loss.kind == "full"
    candidates = step.manifest.items if full else len(step.sampler(0, batch.target_Q).item_N)
    output = 2.0 * targets * candidates * dimension
    add(OUTPUT, output, 2 * output)
    return found


def _pairs(batch: Batch, window: int | None) -> float:
    """Pairs of tokens i >= j of a sequence, only those with time_i - time_j <= `window` where it is given."""
    if window is None:
        return float((batch.lengths_B * (batch.lengths_B + 1) // 2).sum())
    pairs = 0
    for time_n in batch.time_T.split(batch.lengths_B.tolist()):
        pairs += int(((time_n[:, None] - time_n[None, :] <= window).tril()).sum())
    return float(pairs)


def total(flops: Flops, outside: bool) -> float:
    """Forward and backward together: of the network alone, or with the output layer."""
    return sum(sum(both) for label, both in flops.items() if outside or label not in OUTSIDE)


def counted_flops(take: Callable[[], Any]) -> dict[str, float]:
    """The FLOPs of `take()` by operator as torch's counter sees them: padding and the upper triangle included."""
    aten = torch.ops.aten
    mapping = {
        aten.addmm_: lambda out, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, v, *_, **__: (
            sdpa_backward_flop_count(gradient, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        take()
    return {str(name): float(count) for name, count in counter.get_flop_counts()["Global"].items()}


def check(flops: Flops, counted: dict[str, float]) -> dict[str, float]:
    """Both counts of one step: they agree but for attention, which the counter takes with padding and whole squares."""
    attention = sum(sum(both) for label, both in flops.items() if SCORES in label)
    seen = sum(count for name, count in counted.items() if "bmm" in name or "attention" in name)
    return {
        "linear_layers_counted_over_ours": round((sum(counted.values()) - seen) / (total(flops, True) - attention), 4),
        "attention_counted_over_needed": round(seen / attention, 4),
    }


@contextmanager
def marked(step: Step) -> Iterator[None]:
    """Inside, every layer of the step's model is a range of the profiler's trace."""
    recommender = step.recommender
    labels = labels_of(recommender.network)
    modules = [
        (module, f"{labels[name]}: {SCORES}" if isinstance(module, CausalAttention) else labels.get(name, REST))
        for name, module in recommender.network.named_modules()
        if name
    ]
    modules += [(recommender.tables, TABLES)]
    with ExitStack() as stack:
        open_ranges: list[Any] = []

        def enter(label: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                open_ranges.append(record_function(MARK + label))
                open_ranges[-1].__enter__()

            return hook

        def leave(*_: Any) -> None:
            open_ranges.pop().__exit__(None, None, None)

        for module, label in modules:
            if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
                continue
            stack.callback(module.register_forward_pre_hook(enter(label)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        for kind, name, label in (
            (trainer.models.intentrec, "project", PROJECTED),
            (trainer.models.deep, "project", PROJECTED),
            (network_class(), "predict_intents", INTENTS),
            (network_class(), "aggregate", INTENTS),
        ):
            stack.enter_context(patch.object(kind, name, _marked_call(getattr(kind, name), label)))
        for name in ("full_softmax", "sampled_softmax", "intent_loss"):
            original = getattr(trainer.step, name, None)
            if original is not None:
                stack.enter_context(patch.object(trainer.step, name, _marked_call(original, OUTPUT)))
        yield


def _marked_call(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    def call(*arguments: Any, **others: Any) -> Any:
        with record_function(MARK + label):
            return function(*arguments, **others)

    return call


def traced(step: Step, take: Callable[[], Any], steps: int) -> tuple[Any, dict[str, list[float]]]:
    """The profiler after `steps` steps, and milliseconds a step of the forward and of the backward pass by layer."""
    with marked(step), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            with record_function(MARK + REST):
                take()
    return profiler, times_by_layer(profiler.events(), steps)


def times_by_layer(events: Any, steps: int) -> dict[str, list[float]]:
    """Self times, an autograd node's under the layer whose forward made it (same thread and sequence number)."""
    made_in: dict[int, str] = {}
    forward: list[tuple[Any, str]] = []
    backward: list[Any] = []

    def walk(event: Any, label: str) -> None:
        if event.name.startswith(MARK):
            label = event.name.removeprefix(MARK)
        elif event.name.startswith("Optimizer.step"):
            label = OPTIMIZER
        elif event.name.startswith("autograd::engine::evaluate_function"):
            backward.append(event)
            return
        forward.append((event, label))
        for child in event.cpu_children:
            walk(child, label)

    for event in events:
        if event.cpu_parent is None:
            walk(event, REST)
    for event, label in sorted(forward, key=lambda pair: pair[0].time_range.start):
        if event.sequence_nr >= 0:
            made_in[event.sequence_nr] = label
    times: dict[str, list[float]] = {}
    for event, label in forward:
        times.setdefault(label, [0.0, 0.0])[0] += event.self_cpu_time_total / 1000 / steps
    for event in backward:
        default = ACCUMULATE if "AccumulateGrad" in event.name else REST
        label = default if "AccumulateGrad" in event.name else made_in.get(event.sequence_nr, default)
        times.setdefault(label, [0.0, 0.0])[1] += event.cpu_time_total / 1000 / steps
    return times


def table(flops: Flops, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows by time: milliseconds of both passes, GFLOP, GFLOP/s and share of the step."""
    whole = sum(map(sum, times.values()))
    rows = []
    for label, (forward, backward) in sorted(times.items(), key=lambda item: -sum(item[1])):
        gflop = sum(flops.get(label, (0.0, 0.0))) / 1e9
        spent = forward + backward
        rows.append(
            {
                "layer": label,
                "forward_ms": round(forward, 2),
                "backward_ms": round(backward, 2),
                "gflop": round(gflop, 3),
                "gflop_per_second": round(gflop / spent * 1000, 1) if spent else 0.0,
                "share": round(spent / whole, 4),
            }
        )
    return rows


def operators(profiler: Any, steps: int) -> list[dict[str, Any]]:
    """The trace's operators, the one with the most time of its own first."""
    found = [entry for entry in profiler.key_averages() if not entry.key.startswith(MARK)]
    return [
        {
            "name": entry.key,
            "ms": round(entry.self_cpu_time_total / 1000 / steps, 2),
            "calls": round(entry.count / steps, 1),
        }
        for entry in sorted(found, key=lambda entry: -entry.self_cpu_time_total)
    ]


def best_matmul(sizes: Sequence[int] = (512, 1024, 2048), repeats: int = 3) -> dict[str, float]:
    """FLOP/s of torch.matmul for squares of these sizes, the best of `repeats` each."""
    found = {}
    for size in sizes:
        a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
        best, calls = float("inf"), max(1, 2048**3 // size**3)
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in range(calls):
                torch.matmul(a, b, out=out)
            best = min(best, (time.perf_counter() - began) / calls)
        found[f"{size} x {size}"] = 2 * size**3 / best
    return found


def network_passes(step: Step, batches: Sequence[Batch]) -> Callable[[], None]:
    """A call that takes the network alone forward and backward over all batches: no tables, loss or optimizer.

    The backward pass gives the gradients of all weights and of the tables' vectors.
    """
    network = step.recommender.network
    caught: list[Any] = []
    hook = network.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    for number, batch in enumerate(batches):
        step.losses(batch, number)
    hook.remove()
    inputs = [
        replace(given, vectors={name: value.detach().requires_grad_() for name, value in given.vectors.items()})
        for given in caught
    ]

    def run() -> None:
        network.train()
        for given, batch in zip(inputs, batches, strict=True):
            output = network(given)
            outputs = [value[batch.target_position_Q] for value in (output.query_TD, *output.intents.values())]
            torch.autograd.grad(
                outputs,
                [*network.parameters(), *given.vectors.values()],
                [torch.ones_like(value) for value in outputs],
            )

    return run
