"""What `intentrec run` takes, from a config to the report: seconds of each stage, peak memory, accuracy. Prints JSON.

    python -m benchmarks.main_job configs/demo.yaml
    python -m benchmarks.main_job configs/globo.yaml data.events=... data.items=...
    python -m benchmarks.main_job configs/demo.yaml --seeds 3 --models intentrec,deep   # each with three seeds
    python -m benchmarks.main_job --sections A.json B.json      # docs/results.md of what it printed before

The run is a process of its own, in a folder that is new and removed at the end, or in `storage=...` to keep it.
Memory is the sum over all its processes, Ray's included, each page that they share counted once (PSS).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import watch
from benchmarks.seeds import together, with_seeds
from benchmarks.training import header
from cluster.config import Config
from ingest.settings import load_settings

METRICS = ("HR@10", "NDCG@10", "MRR")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the config and say what it took."""
    source, *overrides = options.words
    with tempfile.TemporaryDirectory() as temporary:
        storage = next((word.partition("=")[2] for word in overrides if word.startswith("storage=")), temporary)
        config = with_seeds(source, Path(temporary), options.seeds, options.models)
        command = [sys.executable, "-m", "cluster.cli", "run", config, f"storage={temporary}", *overrides]
        found = watch(command)
        if found.status:
            sys.exit(f"{' '.join(command)} ended with status {found.status}")
        settings = load_settings(Config, config, overrides)
        folder = Path(storage, settings.name)
        results = json.loads((folder / "results.json").read_text())
        merged = together(results, str(folder / "targets"), settings.cluster.workers, settings.evaluate.resamples)
    return header("main_job") | {
        "seconds": {"all": found.seconds} | results["seconds"],
        "peak_memory_gib": round(found.gib, 2),
        "data": {name: results["data"][name] for name in ("users", "items", "events")},
        "targets": results["protocol"]["targets"],
        "unknown_targets": results["protocol"]["unknown_targets"],
        "models": {
            name: {
                "metrics": {metric: model["metrics"][metric] for metric in METRICS},
                "spread": model["spread"] and {metric: model["spread"][metric] for metric in METRICS},
                "seeds": model["seeds"],
                "intents": model["intents"],
                "oracle": model["oracle"],
            }
            for name, model in merged["models"].items()
        },
        "chosen": {name: model["chosen"]["settings"] for name, model in merged["models"].items() if model["chosen"]},
        "versus": merged["versus"],
    }


def section(run: dict[str, Any]) -> str:
    """One run as Markdown."""
    data, seconds, words = run["data"], run["seconds"], run["command"].split()
    words = [word for word in words if "/" not in word.partition("=")[2]]
    first, *_ = run["models"]
    lines = [
        f"## {Path(words[3]).stem}",
        "",
        f"{data['events']:,} events of {data['users']:,} users and {data['items']:,} items; {run['targets']:,} targets"
        f", of which {run['unknown_targets']:,} are items that training does not know. From the log to the report "
        f"{seconds['all'] / 60:.1f} minutes (training {seconds['train']:.0f} s, evaluation {seconds['evaluate']:.0f} s)"
        f" and {run['peak_memory_gib']:.1f} GiB over all processes.",
        "",
        f"`{' '.join(words)}`, {run['date'][:10]}, {run['machine']}, torch {run['versions']['torch']}.",
        "",
        f"| model | {' | '.join(METRICS)} | {first} against it (MRR or NDCG@10) | p |",
        f"|---|{'---|' * len(METRICS)}---|---|",
    ]
    for model, found in run["models"].items():
        values = " | ".join(f"{found['metrics'][metric]:.4f}" for metric in METRICS)
        pair = "| |"
        if versus := run["versus"].get(model):
            p = "< 0.001" if versus["p"] < 0.001 else f"{versus['p']:.3f}"
            pair = f"| {versus['difference']:+.4f} {versus['metric']} | {p} |"
        lines.append(f"| {model}{' (knows the rule)' if found.get('oracle') else ''} | {values} {pair}")
    several = [
        f"{model} {run['models'][model]['seeds']}, MRR {low:.4f} to {high:.4f}"
        for model, found in run["models"].items()
        if found["spread"]
        for low, high in [found["spread"]["MRR"]]
    ]
    if several:
        lines += ["", f"Means over seeds: {'; '.join(several)}."]
    if run["chosen"]:
        chosen = (f"{name} {', '.join(f'{k} {v}' for k, v in found.items())}" for name, found in run["chosen"].items())
        lines += ["", f"Chosen on validation: {'; '.join(chosen)}."]
    if intents := run["models"][first]["intents"]:
        accuracy = ", ".join(f"{intent} {value:.3f}" for intent, value in intents.items())
        lines += ["", f"Intent accuracy of {first}: {accuracy}."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG | key.sub=value", help="a config, and what is laid over it")
    parser.add_argument("--sections", action="store_true", help="the words are files with what was printed before")
    parser.add_argument("--seeds", type=int, default=1, help="that `--models` are trained with, in the same run")
    parser.add_argument("--models", type=lambda names: names.split(","), default=[], help="such as intentrec,deep")
    options = parser.parse_intermixed_args()
    if options.sections:
        print("\n\n".join(section(json.loads(Path(path).read_text())) for path in options.words))
    else:
        print(json.dumps(measure(options), indent=1))
