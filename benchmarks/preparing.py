"""`intentrec prepare` against the bare sort by user and time of the same files with DuckDB and Polars. Prints JSON.

    python -m benchmarks.preparing --users 100000 --items 1000000        # simulates some 10 million events first
    python -m benchmarks.preparing --log FOLDER                          # a log that `simulate` made

Each side is a process of its own, one after the other; memory is that of all its processes together. The bare sort
reads the log's columns, sorts and writes Parquet: no vocabularies, no split, no lists. DuckDB takes part where it is
installed, with a memory limit of 4 GB; so does Polars' streaming engine, which takes no limit. With --ray-data so does
the sort of Ray Data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.memory import watch

FEATURES = [
    {"name": "action", "intent": True},
    {"name": "device"},
    {"name": "genres", "kind": "categories", "of": "item", "intent": True},
    {"name": "content_type", "of": "item", "intent": True},
    {
        "name": "release_age",
        "kind": "elapsed",
        "of": "item",
        "column": "release_date",
        "bins": ["7d", "30d"],
        "intent": True,
    },
]
COLUMNS = "user_id, item_id, timestamp, action, device, watch_seconds"
DUCKDB = """
import duckdb, sys
log, out, folder = sys.argv[1:]
db = duckdb.connect()
db.execute(f"SET memory_limit='4GB'; SET temp_directory='{folder}'")
db.execute(f"COPY (SELECT COLUMNS FROM read_parquet('{log}/events/*.parquet') ORDER BY user_id, timestamp) "
           f"TO '{out}' (FORMAT parquet, COMPRESSION zstd)")
""".replace("COLUMNS", COLUMNS)
POLARS = """
import polars as pl, sys
log, out, folder = sys.argv[1:]
events = pl.scan_parquet(f"{log}/events/*.parquet").select(COLUMNS)
events.sort("user_id", "timestamp").sink_parquet(out, compression="zstd", engine="streaming")
""".replace("COLUMNS", repr(COLUMNS.split(", ")))

RAY_DATA = """
import ray, sys
log, out, folder = sys.argv[1:]
ray.init(include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
events = ray.data.read_parquet(f"{log}/events", columns=COLUMNS)
events.sort(["user_id", "timestamp"]).write_parquet(out, compression="zstd")
""".replace("COLUMNS", repr(COLUMNS.split(", ")))


def timed(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command."""
    found = watch(command)
    took = {"peak_memory_gib": round(found.gib, 2)}
    if found.status:
        return {"failed_with_status": found.status, "after_seconds": round(found.seconds, 1)} | took
    return {"seconds": round(found.seconds, 1)} | took


def measure(log: Path, folder: Path, no_ray: bool, ray_data: bool) -> dict[str, Any]:
    config = {
        "name": "run",
        "storage": str(folder),
        "data": {
            "events": str(log / "events"),
            "items": str(log / "items"),
            "duration": "watch_seconds",
            "features": FEATURES,
        },
        "models": {"popularity": {"kind": "popularity"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    ours = [sys.executable, "-m", "cluster.cli", "prepare", str(folder / "config.yaml"), *["--no-ray"] * no_ray]
    sides = {"prepare": timed(ours)}
    counts = json.loads((folder / "run" / "data" / "manifest.json").read_text())["counts"]
    others = {"duckdb": DUCKDB, "polars": POLARS} | ({"ray.data": RAY_DATA} if ray_data else {})
    for name, script in others.items():
        if importlib.util.find_spec(name) is not None:
            out = folder / f"{name}-sorted"
            sides[name] = timed([sys.executable, "-c", script, str(log), str(out), str(folder)])
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    ratios = {
        name: round(sides["prepare"]["seconds"] / side["seconds"], 2)
        for name, side in sides.items()
        if name != "prepare" and "seconds" in side
    }
    return {
        "command": " ".join(["python -m benchmarks.preparing", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "counts": {name: counts[name] for name in ("events", "users", "items")},
        "events_per_second": round(counts["events"] / sides["prepare"]["seconds"]),
        "sides": sides,
        "times_the_bare_sort": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--log", type=Path, help="a simulated log; by default one is made")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--ray-data", action="store_true", help="also the sort of Ray Data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        log = options.log or Path(name) / "simulated" / "log"
        if options.log is None:
            config = {
                "name": "simulated",
                "storage": name,
                "simulate": {"users": options.users, "items": options.items, "user": {"sessions": 25.2}},
                "data": {},
                "models": {"popularity": {"kind": "popularity"}},
            }
            Path(name, "simulate.yaml").write_text(yaml.safe_dump(config))
            simulate = [sys.executable, "-m", "cluster.cli", "simulate", f"{name}/simulate.yaml"]
            subprocess.run(simulate, check=True, stdout=sys.stderr)
        print(json.dumps(measure(log, Path(name), options.no_ray, options.ray_data), indent=1))


if __name__ == "__main__":
    main()
