"""Prints the sections of docs/results.md from what `benchmarks.main_job` printed.

python -m benchmarks.results A.json B.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

METRICS = ("HR@10", "NDCG@10", "MRR")


def section(run: dict[str, Any]) -> str:
    """One run as Markdown."""
    name = Path(run["command"].split()[3]).stem
    data, seconds = run["data"], run["seconds"]
    words = [word for word in run["command"].split() if "/" not in word.partition("=")[2] or word.startswith("configs")]
    first, *_ = run["models"]
    lines = [
        f"## {name}",
        "",
        f"{data['events']:,} events of {data['users']:,} users and {data['items']:,} items; {run['targets']:,} targets"
        f", of which {run['unknown_targets']:,} are items that training never saw. From the log to the report "
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
        versus = run["versus"].get(model)
        pair = "| |" if versus is None else f"| {versus['difference']:+.4f} {versus['metric']} | {_p(versus['p'])} |"
        lines.append(f"| {model} | {values} {pair}")
    intents = run["models"][first]["intents"]
    if intents:
        accuracy = ", ".join(f"{intent} {value:.3f}" for intent, value in intents.items())
        lines += ["", f"Intent accuracy of {first}: {accuracy}."]
    return "\n".join(lines)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    print("\n\n".join(section(json.loads(Path(path).read_text())) for path in sys.argv[1:]))
