"""A config's log prepared and read through an S3 server on this machine: seconds and peak memory. Prints JSON.

    python -m benchmarks.object_store configs/globo.yaml data.events=... data.items=...

The log's files are put into the server first. Each step is a process of its own; the server's memory is not counted.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.memory import watch
from cluster.config import Config
from ingest.data.manifest import load_manifest
from ingest.settings import load_settings
from ingest.storage import copy, list_files
from tests.s3 import ObjectStore

READ = """
import json, sys, time
from cluster.config import Config
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.settings import load_settings
config = load_settings(Config, sys.argv[1], sys.argv[2:])
began = time.perf_counter()
manifest = load_manifest(config.data_folder)
items = load_items(config.data_folder, manifest)
first = None
for batch, _ in Reader(config.data_folder, manifest, items, "train", config.train.reader).epoch(0):
    first = first or time.perf_counter() - began
print(json.dumps({"first_batch_seconds": round(first, 2), "epoch_seconds": round(time.perf_counter() - began, 2)}))
"""


def timed(command: list[str]) -> tuple[dict[str, float], str]:
    """Seconds and peak memory of a command, and what it printed."""
    found = watch(command, keep_output=True)
    if found.status:
        sys.exit(f"{command} ended with status {found.status}")
    return {"seconds": round(found.seconds, 1), "peak_memory_gib": round(found.gib, 2)}, found.printed or ""


def measure(path: str, overrides: list[str]) -> dict[str, Any]:
    config = load_settings(Config, path, overrides)
    there = [*overrides, "storage=s3://bench/runs"]
    for name, source in (("events", config.data.events), ("items", config.data.items)):
        if source is not None:
            for number, url in enumerate(list_files(source, ".parquet")):
                copy(url, f"s3://bench/{name}/{number:05d}.parquet")
            there.append(f"data.{name}=s3://bench/{name}")
    prepared, _ = timed([sys.executable, "-m", "cluster.cli", "prepare", path, *there])
    read, printed = timed([sys.executable, "-c", READ, path, *there])
    manifest = load_manifest(load_settings(Config, path, there).data_folder)
    interactions = sum(shard.interactions for shard in manifest.shards["train"])
    found = json.loads(printed)
    return {
        "command": " ".join(["python -m benchmarks.object_store", path, *overrides]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "events": manifest.counts["events"],
        "prepare": prepared,
        "read": read | found | {"interactions_per_second": round(interactions / found["epoch_seconds"])},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(Path(folder))
        store.start()
        try:
            os.environ.update(store.environment)
            store.make_bucket("bench")
            print(json.dumps(measure(sys.argv[1], sys.argv[2:]), indent=1))
        finally:
            store.stop()


if __name__ == "__main__":
    main()
