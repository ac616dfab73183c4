"""How fast shards become batches, against bare reads of the same files and against other loaders. Prints JSON.

    python -m benchmarks.reading                # 5 million simulated events, local disk and an S3 server
    python -m benchmarks.reading --events 2e6 --ray-data      # also Ray Data's loader: slow

All sides read the same columns of the same training shards on two threads, in turns in one run; a figure is the median
over the rounds. Ratios are of interactions per second, ours over theirs. Ours are batches as the trainer takes them:
checked, shuffled, cut by tokens, with the items' attributes and the intents of the targets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.training import header, in_turns, prepared, ratio_of
from ingest.arrow_files import arrow_filesystem
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest, save_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from tests.s3 import ObjectStore

THREADS = 2
Side = Callable[[Reader], int]
"""Reads the reader's shards once, whole, and gives the number of interactions."""


def reader(url: str, features: bool = True, manifest: Manifest | None = None, **settings: Any) -> Reader:
    manifest = manifest or load_manifest(url)
    config = ReaderConfig.model_validate({"tokens": 8192, "fetch": THREADS} | settings)
    return Reader(url, manifest, load_items(url, manifest), "train", config, features=features)


def ours(made: Reader) -> int:
    """An epoch of batches."""
    for _ in made.epoch(0):
        pass
    return sum(shard.interactions for shard in made.shards)


def decoded(made: Reader) -> int:
    """What pyarrow.parquet alone takes to decode the same columns, each thread an equal part of every shard."""

    def read(shard: int, part: int) -> int:
        filesystem, path = arrow_filesystem(made.source.path(shard))
        count = 0
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True) as file:
            for group in range(part, file.num_row_groups, THREADS):
                table = file.read_row_group(group, columns=made.columns, use_threads=False)
                count += len(table["item"].combine_chunks().flatten())
        return count

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(read, *zip(*product(range(len(made.shards)), range(THREADS)), strict=True)))


def ray_data(made: Reader) -> int:
    import ray.data

    def collate(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {n: torch.from_numpy(np.concatenate(v)) for n, v in batch.items() if v.dtype == object and n != "user"}

    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = [str(Path(made.source.path(number)).absolute()) for number in range(len(made.shards))]
    data = ray.data.read_parquet(paths, columns=made.columns)
    batches = data.iter_torch_batches(batch_size=96, collate_fn=collate, local_shuffle_buffer_size=20_000)
    return sum(len(batch["item"]) for batch in batches)


def compared(made: Reader, rounds: int, **others: Side) -> dict[str, Any]:
    """Interactions a second of every side, and the ratio of ours to each of the others."""

    def rate(side: Side) -> float:
        began = time.perf_counter()
        return side(made) / (time.perf_counter() - began)

    sides = {"ours": ours} | others
    rates = in_turns(rounds, {name: lambda side=side: rate(side) for name, side in sides.items()})
    return {
        "interactions_per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "ours_over": {name: ratio_of(rates["ours"], rates[name]) for name in others},
    }


def start_up(url: str, rounds: int) -> dict[str, float]:
    """Seconds from the manifest to the first batch, and to read it, by the number of shards in the manifest.

    The manifest of many names each real shard many times: nothing is read of those that are not needed.
    """
    manifest = load_manifest(url)
    shards, seconds = manifest.shards["train"], dict[str, list[float]]()

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    for count in (10, 10_000):
        repeated = {"train": [shards[number % len(shards)] for number in range(count)]}
        save_manifest(manifest.model_copy(update={"shards": manifest.shards | repeated}), url)
        for _ in range(rounds):
            many = timed(f"{count} shards, reading the manifest", lambda: load_manifest(url))
            made = reader(url, manifest=many, shuffle_buffer=100_000)
            timed(f"{count} shards, to the first batch", lambda: next(iter(made.epoch(0))))  # noqa: B023
    save_manifest(manifest, url)
    return {name: round(statistics.median(found), 3) for name, found in seconds.items()}


def measure(url: str, folder: Path, rounds: int, with_ray: bool) -> dict[str, Any]:
    """All comparisons on the prepared data set `url`, which is put into a server whose data are in `folder`."""
    result: dict[str, Any] = {
        "events": load_manifest(url).counts["events"],
        "local, all columns (IntentRec)": compared(reader(url), rounds, pyarrow=decoded),
        "local, items and times (SASRec)": compared(reader(url, features=False), rounds, pyarrow=decoded),
    }
    if with_ray:
        result["Ray Data"] = compared(reader(url), 3, ray_data=ray_data)
    store = ObjectStore(folder)
    store.start()
    try:
        os.environ.update(store.environment)
        store.make_bucket("ingest")
        store.filesystem().put(url, "ingest/data", recursive=True)
        result["S3"] = compared(reader("s3://ingest/data"), rounds, pyarrow=decoded)
        result["start_up"] = start_up("s3://ingest/data", rounds)
    finally:
        store.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=float, default=5e6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ray-data", action="store_true", help="also Ray Data's loader (slow)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    users = max(int(options.events) // 88, 100)
    log = [f"simulate.users={users}", "simulate.items=50000"]
    with prepared("configs/demo.yaml", log) as config, tempfile.TemporaryDirectory() as folder:
        found = measure(config.data_folder, Path(folder), options.rounds, options.ray_data)
    print(json.dumps(header("reading") | found, indent=1))


if __name__ == "__main__":
    main()
