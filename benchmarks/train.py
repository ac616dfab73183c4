"""What training takes on this machine. Each subcommand prints JSON.

    python -m benchmarks.train flops [CONFIG] [key=value ...]       matrix FLOPs a second, and where the time goes
    python -m benchmarks.train profile [CONFIG] [key=value ...]     the operators of a step, longest first
    python -m benchmarks.train intentrec [CONFIG] [key=value ...]   IntentRec's time a target against SASRec's
    python -m benchmarks.train workers [CONFIG] [key=value ...]     2 workers of one thread against 1
    python -m benchmarks.train vocabulary                           steps and memory with 10K to 20M items
    python -m benchmarks.train rates [CONFIG] [key=value ...]       validation by the tables' optimizer settings
    python -m benchmarks.train peers [CONFIG] [key=value ...]       against RecTools and RecBole: see `make bench-peers`

A CONFIG is one of `intentrec run`, by default configs/demo.yaml with longer batches; its data are made and prepared in
a folder that is removed at the end, or in `storage=FOLDER` to keep and find them again. What is compared takes turns in
one run, A B A B after a round of warm-up; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import flops
from benchmarks.peers import measure_peers
from benchmarks.rates import measure_rates
from benchmarks.scaling import measure_vocabulary, measure_workers
from benchmarks.training import Case, Driver, header, in_turns, prepared, ratio_of, targets_of
from embeddings.workers import Worker, single_process

LONGER = ["train.reader.tokens=8192", "train.reader.max_length=200"]
"""Laid over the config before what the command line says."""


def measure_flops(options: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of the network and of the step against the best of torch.matmul, at each dimension."""
    found: dict[str, Any] = {}
    for dimension in options.dimensions:
        overrides = [*LONGER, *options.overrides, f"train.tables.dimension={dimension}"]
        with prepared(options.config, overrides) as config, single_process(torch.device("cpu")):
            found[str(dimension)] = _flops_of(Case.of(config, options.model), options)
    return {
        "model": options.model,
        "threads": torch.get_num_threads(),
        "counts": "matrix FLOPs that are needed: see the head of benchmarks/flops.py. network: forward and backward "
        "without tables, output layer, loss and optimizer; model: all but clipping and the dense optimizer; step: all",
        "dimensions": found,
    }


def _flops_of(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    worker = Worker()
    batches = case.batches(options.batches, worker)
    step = case.step(worker)
    driver = Driver(step, batches)
    counts = [flops.needed_flops(step, batch) for batch in batches]
    network = sum(flops.total(count, outside=False) for count in counts)
    model = sum(flops.total(count, outside=True) for count in counts)
    passes, squares = flops.network_passes(step, batches), dict[str, list[float]]()

    def matmul() -> float:
        for name, rate in flops.best_matmul().items():
            squares.setdefault(name, []).append(rate)
        return max(rates[-1] for rates in squares.values())

    sides: dict[str, Callable[[], float]] = {
        "matmul": matmul,
        "network": lambda: network / _seconds(passes),
        "model": lambda: model / _seconds(driver.forward_and_backward),
        "step": lambda: model / driver.round(),
    }
    rates = in_turns(options.rounds, sides)
    mean = {label: _mean([count.get(label, (0.0, 0.0)) for count in counts]) for count in counts for label in count}
    _, times = flops.traced(step, driver.take, len(batches))
    return {
        "tokens": sum(batch.tokens for batch in batches) / len(batches),
        "loss": step.config.loss.model_dump(exclude={"chunk"}),
        "gflop_a_step": {
            "network": round(network / len(batches) / 1e9, 2),
            "all": round(model / len(batches) / 1e9, 2),
        },
        "gflop_per_second": {name: round(statistics.median(values) / 1e9, 1) for name, values in rates.items()},
        "share_of_matmul": {name: ratio_of(rates[name], rates["matmul"]) for name in ("network", "model", "step")},
        "matmul": {name: round(statistics.median(values) / 1e9, 1) for name, values in squares.items()},
        "check": flops.check(counts[0], flops.counted_flops(lambda: Driver(step, batches[:1]).take())),
        "by_layer": flops.table(mean, times),
    }


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs)


def measure_profile(options: argparse.Namespace) -> dict[str, Any]:
    """The operators of a step by their own time."""
    with prepared(options.config, [*LONGER, *options.overrides]) as config, single_process(torch.device("cpu")):
        worker = Worker()
        case = Case.of(config, options.model)
        batches = case.batches(options.batches, worker)
        step = case.step(worker)
        driver = Driver(step, batches)
        driver.round()
        profiler, times = flops.traced(step, driver.take, len(batches))
        counts = flops.needed_flops(step, batches[0])
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=options.rows), file=sys.stderr)
    return {
        "model": options.model,
        "threads": torch.get_num_threads(),
        "step_ms": round(sum(map(sum, times.values())), 2),
        "operators": flops.operators(profiler, len(batches))[: options.rows],
        "by_layer": flops.table(counts, times),
    }


def measure_intentrec(options: argparse.Namespace) -> dict[str, Any]:
    """Time a target of IntentRec over SASRec's, against the ratio of their FLOPs."""
    with prepared(options.config, [*LONGER, *options.overrides]) as config, single_process(torch.device("cpu")):
        worker = Worker()
        drivers, needed, causal = {}, {}, {}
        for name in ("intentrec", "sasrec"):
            case = Case.of(config, name)
            batches = case.batches(options.batches, worker)
            drivers[name] = Driver(case.step(worker), batches)
            targets = sum(map(targets_of, batches))
            for counts, windows in ((needed, True), (causal, False)):
                each = [flops.needed_flops(drivers[name].step, batch, windows) for batch in batches]
                counts[name] = sum(flops.total(count, outside=True) for count in each) / targets
        seconds = in_turns(options.rounds, {name: driver.round for name, driver in drivers.items()})
    times = ratio_of(seconds["intentrec"], seconds["sasrec"])
    ratios = {
        "window_pairs": needed["intentrec"] / needed["sasrec"],
        "causal_pairs": causal["intentrec"] / causal["sasrec"],
    }
    return {
        "threads": torch.get_num_threads(),
        "targets_a_round": targets,
        "targets_per_second": {name: round(targets / statistics.median(values)) for name, values in seconds.items()},
        "kiloflop_a_target": {name: round(value / 1e3) for name, value in needed.items()},
        "ratio_of_times": times,
        "ratio_of_flops": {name: round(value, 3) for name, value in ratios.items()},
        "times_over_flops": {name: round(times["median"] / value, 3) for name, value in ratios.items()},
    }


def _names(text: str) -> list[str]:
    return text.split(",")


def _floats(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _options() -> argparse.Namespace:
    """The command line; a config and `key=value` may stand anywhere among the options."""
    parser = _parser()
    options, others = parser.parse_known_args()
    strange = [word for word in others if word.startswith("-")]
    if strange:
        parser.error(f"unknown: {' '.join(strange)}")
    words = [*getattr(options, "words", []), *others]
    options.overrides = [word for word in words if "=" in word]
    options.config = next((word for word in words if "=" not in word), getattr(options, "config", None))
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], threads: int = 2) -> Any:
        added = commands.add_parser(name, help=(run.__doc__ or "").strip())
        added.set_defaults(run=run)
        added.add_argument("--threads", type=int, default=threads, help="of tensor operations")
        return added

    def with_config(added: Any, rounds: int = 5, batches: int = 6) -> Any:
        added.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and what is laid over it")
        added.set_defaults(config="configs/demo.yaml")
        added.add_argument("--rounds", type=int, default=rounds)
        added.add_argument("--batches", type=int, default=batches, help="of a round")
        return added

    for name, run in (("flops", measure_flops), ("profile", measure_profile)):
        added = with_config(command(name, run))
        added.add_argument("--model", default="sasrec")
        if name == "flops":
            added.add_argument("--dimensions", type=_numbers, default=[64, 256], metavar="64,256")
        else:
            added.add_argument("--rows", type=int, default=40, help="operators to name")
    with_config(command("intentrec", measure_intentrec))
    added = with_config(command("workers", measure_workers))
    added.add_argument("--model", default="sasrec")
    added.add_argument("--losses", type=_names, default=["sampled", "full"], metavar="sampled,full")
    added.add_argument("--live", action="store_true", help="read while training goes on, instead of beforehand")
    added.add_argument("--trace", action="store_true", help="where the time goes with 1 and with 2 workers")
    added = command("vocabulary", measure_vocabulary)
    sizes = {"few": 10_000, "many": 10_000_000, "most": 20_000_000, "dimension": 64, "tokens": 4096}
    sizes |= {"negatives": 1024, "workers": 2, "batches": 8, "rounds": 5, "steps": 64}
    for size, default in sizes.items():
        added.add_argument(f"--{size}", type=int, default=default)
    added = command("rates", measure_rates)
    added.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and what is laid over it")
    added.set_defaults(config="configs/demo.yaml")
    added.add_argument("--model", default="sasrec")
    added.add_argument("--rates", type=_floats, default=[0.01, 0.02, 0.05, 0.1], metavar="0.01,0.02,0.05,0.1")
    added.add_argument("--deviations", type=_floats, default=[0.02, 0.05], metavar="0.02,0.05", help="of rows at first")
    added.add_argument("--epochs", type=int, default=5)
    added.add_argument("--source", help="MovieLens, where only some users are to be taken")
    added.add_argument("--users", type=int, help="of the source")
    added = command("peers", measure_peers)
    added.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="a config, and what is laid over it")
    added.set_defaults(config="configs/ml-1m.yaml")
    added.add_argument("--source", default="data/ml-1m", help="MovieLens 1M: see the head of configs/ml-1m.yaml")
    added.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="of the peers' environment")
    added.add_argument("--peers", type=_names, default=["rectools", "recbole"], metavar="rectools,recbole")
    added.add_argument("--users", type=int, help="only so many: RecBole takes hours for an epoch of all")
    added.add_argument("--epochs", type=int, default=2)
    added.add_argument("--turns", type=int, default=4, help="of an epoch")
    added.add_argument("--steps", type=int, help="of a turn: for the speed alone, no validation loss")
    added.add_argument("--length", type=int, default=200, help="of sequences, at most")
    added.add_argument("--dropout", type=float, default=0.2)
    added.add_argument("--learning-rate", type=float, default=1e-3, help="of all dense weights")
    added.add_argument("--own-learning-rate", type=float, help="of ours, where it is another")
    added.add_argument("--expansion", type=int, help="of our feed-forward layers; by default the peer's")
    added.add_argument("--rectools-batch", type=int, default=128)
    added.add_argument("--recbole-batch", type=int, default=2048)
    return parser


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    print(json.dumps(header() | options.run(options), indent=1))


if __name__ == "__main__":
    main()
