"""What `intentrec run` takes, from a config to the report: seconds of each stage, peak memory, accuracy. Prints JSON.

    python -m benchmarks.main_job configs/demo.yaml
    python -m benchmarks.main_job configs/globo.yaml data.events=... data.items=...

The run is a process of its own, in a folder that is new and removed at the end, or in `storage=...` to keep it.
Memory is the sum over all its processes, Ray's included, each page that they share counted once (PSS).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.memory import watch
from benchmarks.training import header


def measure(config: str, overrides: list[str]) -> dict[str, object]:
    """Run `config` and say what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        storage = next((word.partition("=")[2] for word in overrides if word.startswith("storage=")), temporary)
        command = [sys.executable, "-m", "cluster.cli", "run", config, f"storage={temporary}", *overrides]
        found = watch(command)
        if found.status:
            sys.exit(f"{' '.join(command)} ended with status {found.status}")
        (path,) = Path(storage).glob("*/results.json")
        results = json.loads(path.read_text())
    return header("main_job") | {
        "seconds": {"all": round(found.seconds, 1)}
        | {name: round(value, 1) for name, value in results["seconds"].items()},
        "peak_memory_gib": round(found.gib, 2),
        "processes": found.processes,
        "data": {name: results["data"][name] for name in ("users", "items", "events")},
        "targets": results["protocol"]["targets"],
        "unknown_targets": results["protocol"]["unknown_targets"],
        "models": {
            name: {
                "metrics": {metric: round(model["metrics"][metric], 4) for metric in ("HR@10", "NDCG@10", "MRR")},
                "intents": {intent: round(value, 4) for intent, value in model["intents"].items()},
                "training_seconds": model["seconds"] and round(model["seconds"], 1),
            }
            for name, model in results["models"].items()
        },
        "versus": results["models"][next(iter(results["models"]))]["versus"],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_args()
    print(json.dumps(measure(options.config, options.overrides), indent=1))
