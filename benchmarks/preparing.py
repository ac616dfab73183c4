"""`intentrec prepare` against the bare sort by user and time of the same files with DuckDB and Polars. Prints JSON.

    python -m benchmarks.preparing --users 100000 --items 1000000        # some 10 million simulated events

Each side is a process of its own, one after the other; memory is that of all its processes together. The bare sort
reads the log's columns, sorts and writes Parquet: no vocabularies, no split, no lists. DuckDB takes part where it is
installed, with a memory limit of 4 GB; so does Polars' streaming engine, which takes no limit. With --ray-data so does
the sort of Ray Data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import watch
from benchmarks.training import header

COLUMNS = ["user_id", "item_id", "timestamp", "action", "device", "watch_seconds"]
SORTS = {
    "duckdb": """
import duckdb, sys
log, out, folder, *columns = sys.argv[1:]
db = duckdb.connect()
db.execute(f"SET memory_limit='4GB'; SET temp_directory='{folder}'")
events = db.sql(f"SELECT {', '.join(columns)} FROM read_parquet('{log}/events/*.parquet') ORDER BY user_id, timestamp")
events.write_parquet(out, compression="zstd")
""",
    "polars": """
import polars as pl, sys
log, out, folder, *columns = sys.argv[1:]
events = pl.scan_parquet(f"{log}/events/*.parquet").select(columns)
events.sort("user_id", "timestamp").sink_parquet(out, compression="zstd", engine="streaming")
""",
    "ray.data": """
import ray, sys
log, out, folder, *columns = sys.argv[1:]
ray.init(include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
events = ray.data.read_parquet(f"{log}/events", columns=columns)
events.sort(["user_id", "timestamp"]).write_parquet(out, compression="zstd")
""",
}
STAGE = [sys.executable, "-m", "cluster.cli"]
CONFIG = ["configs/demo.yaml", "name=run"]


def timed(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command."""
    found = watch(command)
    name = "failed_after_seconds" if found.status else "seconds"
    return {name: round(found.seconds, 1), "peak_memory_gib": round(found.gib, 2)}


def measure(log: Path, folder: Path, ray_data: bool) -> dict[str, Any]:
    """All sides on the log of `log`; what they write goes to `folder`."""
    paths = [f"storage={folder}", "simulate=null", f"data.events={log}/events", f"data.items={log}/items"]
    paths += ["models={popularity: {kind: popularity}}", "recommend=null"]  # others read the rule of the log
    sides = {"prepare": timed([*STAGE, "prepare", *CONFIG, *paths])}
    if "seconds" not in sides["prepare"]:
        sys.exit("prepare has failed: its error stands above")
    counts = json.loads((folder / "run" / "data" / "manifest.json").read_text())["counts"]
    for name, script in SORTS.items():
        if importlib.util.find_spec(name) is not None and (ray_data or name != "ray.data"):
            out = folder / f"{name}-sorted"
            sides[name] = timed([sys.executable, "-c", script, str(log), str(out), str(folder), *COLUMNS])
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    seconds = {name: side["seconds"] for name, side in sides.items() if "seconds" in side}
    return {
        "counts": {name: counts[name] for name in ("events", "users", "items")},
        "events_per_second": round(counts["events"] / seconds["prepare"]),
        "sides": sides,
        "prepare_over": {
            name: round(seconds["prepare"] / taken, 2) for name, taken in seconds.items() if name != "prepare"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--ray-data", action="store_true", help="also the sort of Ray Data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        made = [f"storage={name}", "simulate={user: {sessions: 25.2}}"]
        made += [f"simulate.users={options.users}", f"simulate.items={options.items}"]
        subprocess.run([*STAGE, "simulate", *CONFIG, *made], check=True, stdout=sys.stderr)
        found = measure(Path(name, "run", "log"), Path(name), options.ray_data)
    print(json.dumps(header("preparing") | found, indent=1))


if __name__ == "__main__":
    main()
