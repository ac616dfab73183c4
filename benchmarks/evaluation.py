"""Whether an evaluation's memory grows with the users: logs of configs/demo.yaml's rule with more and more of them.

python -m benchmarks.evaluation [USERS ...] [--folder FOLDER]    10 thousand, 100 thousand and a million by default

Each log is made and prepared, and then `intentrec evaluate` ranks all items for every user by two models that need no
training, writes the targets and compares the models: seconds, peak memory and bytes of the targets, as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import watch

MODELS = "{markov: {kind: markov}, popularity: {kind: popularity}}"


def measure(users: int, folder: Path) -> dict[str, Any]:
    """The evaluation of a log of `users` users, in one process."""
    options = [f"name=users-{users}", f"storage={folder}", f"simulate.users={users}", "simulate.days=2"]
    options += [f"models={MODELS}", "recommend=null", "cluster.threads=1"]
    options += ["train.reader.tokens=8192", "train.reader.shuffle_buffer=100000"]  # less than the smallest log
    took = {}
    for verb in ("simulate", "prepare", "evaluate"):
        command = [sys.executable, "-m", "cluster.cli", verb, "configs/demo.yaml", *options, "--no-ray"]
        took[verb] = watch([word for word in command if verb != "simulate" or word != "--no-ray"])
        if took[verb].status:
            raise SystemExit(f"{' '.join(command)}: exit status {took[verb].status}")
    run = folder / f"users-{users}"
    results = json.loads((run / "results.json").read_text())
    return {
        "users": users,
        "targets": results["protocol"]["targets"],
        "events": results["data"]["events"],
        "seconds": round(took["evaluate"].seconds, 1),
        "peak_memory_mib": round(1024 * took["evaluate"].gib),
        "target_bytes": sum(path.stat().st_size for path in (run / "targets").rglob("*.parquet")),
        "versus": results["models"]["markov"]["versus"]["popularity"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("users", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for users in options.users:
            print(json.dumps(measure(users, options.folder or Path(temporary))), flush=True)


if __name__ == "__main__":
    main()
