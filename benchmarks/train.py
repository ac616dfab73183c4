"""What training takes on this machine. Each command prints JSON.

    python -m benchmarks.train flops [CONFIG] [key=value ...]     targets and matrix FLOPs a second of SASRec and
                                                                  IntentRec, against the best torch.matmul
    python -m benchmarks.train workers [CONFIG] [key=value ...]   2 workers of one thread against 1
    python -m benchmarks.train vocabulary                         steps and memory with 10K to 20M items

A CONFIG is one of `intentrec run`, by default configs/demo.yaml with longer batches; its data are made and prepared in
a folder that is removed at the end, or in `storage=FOLDER` to keep and find them again. What is compared takes turns in
one run, A B A B after a round of warm-up; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.groups import Ask, group, results
from benchmarks.training import Case, Training, counted_flops, header, in_turns, prepared, ratio_of, targets_of
from benchmarks.vocabulary import measure_vocabulary
from cluster.config import Config
from embeddings.workers import Worker, single_process
from ingest.data.batch import Batch
from trainer.step import Step

LONGER = ["train.reader.tokens=8192", "train.reader.max_length=200"]
"""Laid over the config before what the command line says."""


def measure_flops(options: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of models' networks and steps against the best of torch.matmul, and of their times a target."""
    with prepared(options.config, [*LONGER, *options.overrides]) as config, single_process(torch.device("cpu")):
        worker = Worker()
        sides: dict[str, Callable[[], float]] = {"matmul": best_matmul}
        gflop: dict[str, float] = {}
        for name in options.models:
            case = Case.of(config, name)
            batches = case.batches(options.batches, worker)
            training = Training(case.step(worker), cycle(batches))
            passes = {
                f"{name} network": network_passes(training.step, batches),
                f"{name} step": partial(training.seconds, len(batches)),
            }
            gflop |= {part: counted_flops(call) / 1e9 for part, call in passes.items()}
            sides |= {part: partial(_seconds, call) for part, call in passes.items()}
        found = in_turns(options.rounds, sides)
    matmul, targets = [rate / 1e9 for rate in found.pop("matmul")], sum(map(targets_of, batches))
    rates = {part: [gflop[part] / each for each in seconds] for part, seconds in found.items()} | {"matmul": matmul}
    first, last = f"{options.models[0]} step", f"{options.models[-1]} step"
    return {
        "threads": torch.get_num_threads(),
        "dimension": case.train.tables.dimension,
        "loss": case.train.loss.model_dump(include={"kind", "negatives", "sampling"}),
        "network": "forward and backward without tables, output layer, loss and optimizer",
        "tokens_a_batch": sum(batch.tokens for batch in batches) / len(batches),
        "targets_per_second": {
            name: round(targets / statistics.median(found[f"{name} step"])) for name in options.models
        },
        "kiloflop_a_target": {part: round(1e6 * value / targets) for part, value in gflop.items()},
        "gflop_per_second": {
            part: round(statistics.median(each), 1) for part, each in {"matmul": matmul, **rates}.items()
        },
        "share_of_matmul": {part: ratio_of(each, matmul) for part, each in rates.items() if part != "matmul"},
        "last_model_over_first": {
            "seconds": ratio_of(found[last], found[first]),
            "flops": round(gflop[last] / gflop[first], 3),
            "seconds_over_flops": round(ratio_of(found[last], found[first])["median"] * gflop[first] / gflop[last], 3),
        },
    }


def network_passes(step: Step, batches: Sequence[Batch]) -> Callable[[], None]:
    """A call that takes the network alone forward and backward over all batches: no tables, loss or optimizer.

    The backward pass gives the gradients of all weights and of the tables' vectors.
    """
    network = step.recommender.network
    caught: list[Any] = []
    hook = network.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    for number, batch in enumerate(batches):
        step.losses(step.prepare(batch, number))
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
                outputs, [*network.parameters(), *given.vectors.values()], [torch.ones_like(value) for value in outputs]
            )

    return run


def best_matmul() -> float:
    """FLOP/s of torch.matmul: the best of squares of 512, 1,024 and 2,048, three times each."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
        calls = 2048**3 // size**3
        for _ in range(3):
            seconds = _seconds(lambda: [torch.matmul(a, b, out=out) for _ in range(calls)])  # noqa: B023
            best = max(best, 2 * size**3 * calls / seconds)
    return best


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure_workers(options: argparse.Namespace) -> dict[str, Any]:
    """Targets a second of 2 workers with one thread each over those of 1 worker with one thread."""
    with prepared(options.config, [*LONGER, *options.overrides]) as config, ExitStack() as stack:
        arguments = {"config": config.model_dump(mode="json", by_alias=True), "model": options.models[0]}
        one, other, pair = (
            stack.enter_context(group(count, _train, **arguments, batches=options.batches)) for count in (1, 1, 2)
        )

        def rate(*groups: Ask) -> float:
            """Targets a second of groups that work at the same time."""
            found = [results(futures) for futures in [ask(steps=options.batches) for ask in groups]]
            return sum(sum(targets for _, targets in ranks) / ranks[0][0] for ranks in found)

        rates = in_turns(
            options.rounds, {"one": lambda: rate(one), "two": lambda: rate(pair), "apart": lambda: rate(one, other)}
        )
    return {
        "model": options.models[0],
        "loss": config.train.loss.model_dump(include={"kind", "negatives", "sampling"}),
        "tokens_a_worker": config.train.reader.tokens,
        "apart": "2 groups of one worker each at the same time, which exchange nothing: what the machine allows",
        "targets_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "two_over_one": ratio_of(rates["two"], rates["one"]),
        "apart_over_one": ratio_of(rates["apart"], rates["one"]),
    }


def _train(worker: Worker, config: dict[str, Any], model: str, batches: int) -> Callable[..., tuple[float, int]]:
    """Steps over the config's first batches: the seconds of all workers' steps, and this worker's targets."""
    case = Case.of(Config.model_validate(config), model)
    made = case.batches(batches, worker)
    if not made:
        raise ValueError(f"no batch for worker {worker.rank}: take more users or smaller data.row_group_interactions")
    training = Training(case.step(worker), cycle(made))

    def call(steps: int) -> tuple[float, int]:
        before = training.targets
        dist.barrier()
        began = time.perf_counter()
        training.seconds(steps)
        dist.barrier()
        return time.perf_counter() - began, training.targets - before

    return call


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "flops": measure_flops,
    "workers": measure_workers,
    "vocabulary": measure_vocabulary,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and what is laid over it")
    parser.add_argument("--threads", type=int, default=2, help="of tensor operations, but for workers and vocabulary")
    parser.add_argument(
        "--models", nargs="+", default=["sasrec", "intentrec"], help="of the config; workers: the first"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of a round")
    parser.add_argument("--items", type=int, nargs=3, default=[10_000, 10_000_000, 20_000_000], help="vocabulary")
    parser.add_argument("--steps", type=int, default=64, help="vocabulary: with the most items")
    options = parser.parse_intermixed_args()
    options.overrides = [word for word in options.words if "=" in word]
    options.config = next((word for word in options.words if "=" not in word), "configs/demo.yaml")
    torch.set_num_threads(options.threads)
    print(json.dumps(header("train") | COMMANDS[options.command](options), indent=1))


if __name__ == "__main__":
    main()
