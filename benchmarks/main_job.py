"""What `intentrec run` takes, from a config to the report: seconds of each stage, peak memory, accuracy. Prints JSON.

    python -m benchmarks.main_job configs/demo.yaml > docs/results/demo.json
    python -m benchmarks.main_job configs/globo.yaml data.events=... data.items=... > docs/results/globo.json
    python -m benchmarks.main_job configs/demo.yaml --seeds 3 --models intentrec,deep   # each with three seeds
    make results                                        # docs/results.md of what is kept there

The run is a process of its own, in a folder that is new and removed at the end, or in `storage=...` to keep it.
Memory is the sum over all its processes, Ray's included, each page that they share counted once (PSS).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import watch
from benchmarks.paper_tables import p_of
from benchmarks.seeds import COPY, busiest, together, with_seeds
from benchmarks.training import header, rounded
from cluster.config import Config
from ingest.settings import load_settings

METRICS = ("HR@10", "NDCG@10", "MRR")
TIMES = ("training", "latency")
BUSY = 0.03
"""The share of the targets from which on one item is named: means hang on where it is ranked."""
FACTS = ("seeds", "intents", "quality", "oracle", "parameters", "table_parameters", *TIMES)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the config and say what it took."""
    source, *overrides = options.words
    with tempfile.TemporaryDirectory() as temporary:
        storage = next((word.partition("=")[2] for word in overrides if word.startswith("storage=")), temporary)
        config = with_seeds(source, overrides, Path(temporary), options.seeds, options.models)
        command = [sys.executable, "-m", "cluster.cli", "run", config, f"storage={storage}"]
        taken = watch(command)
        if taken.status:
            sys.exit(f"{' '.join(command)} ended with status {taken.status}")
        settings = load_settings(Config, config, [f"storage={storage}"])
        folder = Path(storage, settings.name)
        results = json.loads((folder / "results.json").read_text())
        given = str(folder / "targets"), settings.cluster.workers.max, settings.evaluate.resamples
        merged = together(results, *given)
        best = best_of(merged["models"], results["protocol"]["metric"])
        own_first = sorted(results["models"], key=lambda name: name.partition(COPY)[0] != best)
        models = {name: results["models"][name] for name in own_first}
        led = together(results | {"models": models, "segments": []}, *given)
    found = header("main_job") | {
        "seconds": {"all": taken.seconds} | results["seconds"],
        "peak_memory_gib": round(taken.gib, 2),
        "data": {name: results["data"][name] for name in ("users", "items", "events")},
        "targets": results["protocol"]["targets"],
        "unknown_targets": results["protocol"]["unknown_targets"],
        "models": {
            name: {
                "metrics": {metric: model["metrics"][metric] for metric in METRICS},
                "spread": model["spread"] and {metric: model["spread"][metric] for metric in METRICS},
                "deviation": model["deviation"] and {metric: model["deviation"][metric] for metric in METRICS},
                **{fact: model[fact] for fact in FACTS},
            }
            for name, model in merged["models"].items()
        },
        "chosen": {name: model["chosen"]["settings"] for name, model in merged["models"].items() if model["chosen"]},
        "versus": merged["versus"],
        "best": {"model": best, "versus": led["versus"]},
        "busiest": busiest(results, given[0]),
        "majority": results["majority"],
        "simple": results["simple"],
        "segments": merged["segments"],
    }
    return without_times(found) if options.busy else found


def best_of(models: dict[str, Any], metric: str) -> str:
    """The trained model, of several seeds by their mean, that is best in the metric that models are compared by."""
    trained = [name for name, model in models.items() if model["parameters"] is not None]
    return max(trained, key=lambda name: models[name]["metrics"][metric])


def without_times(run: dict[str, Any]) -> dict[str, Any]:
    """The same without what other work on the machine has made longer."""
    models = {name: model | dict.fromkeys(TIMES) for name, model in run["models"].items()}
    return run | {"seconds": None, "models": models}


def section(run: dict[str, Any]) -> str:
    """One run as Markdown."""
    data, seconds, words = run["data"], run["seconds"], shlex.split(run["command"])
    words = [word for word in words if "/" not in word.partition("=")[2]]
    first, *_ = run["models"]
    took = "It ran beside other work, so no times are kept."
    if seconds:
        took = (
            f"From the log to the report {seconds['all'] / 60:.1f} minutes (training {seconds['train']:.0f} s, "
            f"evaluation {seconds['evaluate']:.0f} s) and {run['peak_memory_gib']:.1f} GiB over all processes."
        )
    lines = [
        f"## {Path(words[3]).stem}",
        "",
        f"{data['events']:,} events of {data['users']:,} users and {data['items']:,} items; {run['targets']:,} targets"
        f", of which {run['unknown_targets']:,} are items that training does not know. {took}",
        "",
        f"`{shlex.join(words)}`, {run['date'][:10]}, commit {run['commit']}, {run['machine']}, "
        f"torch {run['versions']['torch']}.",
        "",
        f"| model | {' | '.join(METRICS)} | {first} against it (MRR or NDCG@10) | p |",
        f"|---|{'---|' * len(METRICS)}---|---|",
    ]
    for model, found in run["models"].items():
        values = " | ".join(_value(found, metric) for metric in METRICS)
        pair = "| |"
        if versus := run["versus"].get(model):
            pair = f"| {versus['difference']:+.4f} {versus['metric']} | {p_of(versus['p'])} |"
        lines.append(f"| {model}{' (knows the rule)' if found.get('oracle') else ''} | {values} {pair}")
    several = [f"{model} {found['seeds']}" for model, found in run["models"].items() if found["deviation"]]
    if several:
        lines += ["", f"Means over seeds ± the standard deviation of a seed: {', '.join(several)} of them."]
    lines += _against_baselines(run) + _without_the_busiest(run)
    if run["chosen"]:
        chosen = (f"{name} {', '.join(f'{k} {v}' for k, v in found.items())}" for name, found in run["chosen"].items())
        lines += ["", f"Chosen on validation: {'; '.join(chosen)}."]
    return "\n".join([*lines, *_intents(run), *_segments(run), *_times(run)])


def _against_baselines(run: dict[str, Any]) -> list[str]:
    """The best trained model against each that is not trained; runs of before it was kept have none."""
    if "best" not in run:
        return []
    best, versus = run["best"]["model"], run["best"]["versus"]
    against = [
        f"{name} {found['difference']:+.4f} {found['metric']} (p {p_of(found['p'])})"
        for name, found in versus.items()
        if run["models"][name]["parameters"] is None
    ]
    trained = sum(found["parameters"] is not None for found in run["models"].values())
    words = f"The best of the {trained} trained models above, {best}, against each baseline"
    words += " (p as if it had been the only one)" * (trained > 1)
    return ["", f"{words}: {', '.join(against)}."] if against else []


def _without_the_busiest(run: dict[str, Any]) -> list[str]:
    """Where one item is more of the targets than `BUSY`: what models have without it, in the metric of comparisons."""
    found = run.get("busiest")
    if not found or found["share"] < BUSY:
        return []
    values = ", ".join(f"{name} {value:.4f}" for name, value in found["without"].items())
    return [
        "",
        f"One item, {found['item']}, is {found['share']:.1%} of the targets. {found['metric']} without it: {values}.",
    ]


def _value(found: dict[str, Any], metric: str) -> str:
    spread = f" ± {found['deviation'][metric]:.4f}" if found["deviation"] else ""
    return f"{found['metrics'][metric]:.4f}{spread}"


def _intents(run: dict[str, Any]) -> list[str]:
    """How well the first model predicts intents, beside what needs no training; of several seeds the first."""
    first = next(iter(run["models"]))
    quality = run["models"][first]["quality"]
    if not quality:
        return []
    lines = ["", "| intent | by | accuracy | macro F1 | log loss | calibration error |", "|---|---|---|---|---|---|"]
    for intent in quality:
        for name, found in {**run["simple"], first: quality}.items():
            names = ("accuracy", "macro_f1", "log_loss", "calibration_error")
            cells = ("" if found[intent][of] is None else f"{found[intent][of]:.3f}" for of in names)
            lines.append(f"| {intent} | {name} | {' | '.join(cells)} |")
    return lines


def _segments(run: dict[str, Any]) -> list[str]:
    """The first model against its control in parts of the targets; of several seeds their means."""
    rows = [row for row in run["segments"] if row["versus"]]
    if not rows:
        return []
    first, (control,) = next(iter(run["models"])), rows[0]["versus"]
    metric = rows[0]["versus"][control]["metric"]
    head = f"| {metric} by | targets | number | {first} | {control} | difference | p |"
    lines = ["", head, f"|{'---|' * 7}"]
    for row in rows:
        versus, values = row["versus"][control], row["values"]
        lines.append(
            f"| {row['by']} | {row['name']} | {row['targets']:,} | {values[first]:.4f} | {values[control]:.4f} | "
            f"{versus['difference']:+.4f} | {p_of(versus['p'])} |"
        )
    return lines


def _times(run: dict[str, Any]) -> list[str]:
    """What each trained model takes; of several seeds the first."""
    head = "| model | parameters | in tables | seconds an epoch | targets/s | GiB | a user, ms | users/s |"
    lines = ["", head, f"|{'---|' * 8}"]
    for name, found in run["models"].items():
        training, latency = found["training"], found["latency"]
        if training is None or latency is None:
            continue
        lines.append(
            f"| {name} | {found['parameters']:,} | {found['table_parameters']:,} | {training['epoch_seconds']:.1f} | "
            f"{training['targets_per_second']:,.0f} | {training['memory_gib']:.2f} | {1000 * latency['request']:.1f} | "
            f"{latency['users_per_second']:,.0f} |"
        )
    return lines if len(lines) > 3 else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG | key.sub=value", help="a config, and what is laid over it")
    parser.add_argument("--seeds", type=int, default=1, help="that `--models` are trained with, in the same run")
    parser.add_argument("--models", type=lambda names: names.split(","), default=[], help="such as intentrec,deep")
    parser.add_argument("--busy", action="store_true", help="the machine has other work: keep no times")
    options = parser.parse_intermixed_args()
    if options.seeds > 1 and not options.models:
        parser.error("--seeds: takes --models, too")
    print(json.dumps(rounded(measure(options)), indent=1))
