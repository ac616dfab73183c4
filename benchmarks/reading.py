"""How fast shards become batches, against bare reads of the same files and against other loaders. Prints JSON.

    python -m benchmarks.reading                # 5 million simulated events, local disk and an S3 server
    python -m benchmarks.reading --events 2e6 --peers      # also a DataLoader and Ray Data: slow

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.training import header, in_turns, prepared, ratio_of
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest, save_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from ingest.storage import arrow_filesystem
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


def fetched(made: Reader) -> int:
    """A read of the same objects' bytes, nothing decoded."""

    def read(number: int) -> int:
        filesystem, path = arrow_filesystem(made.source.path(number))
        with filesystem.open_input_file(path) as file:
            file.read()
        return made.shards[number].interactions

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(read, range(len(made.shards))))


class _Rows(torch.utils.data.IterableDataset[dict[str, Any]]):
    """What one writes first: a DataLoader over pyarrow, a user's lists as tensors."""

    def __init__(self, made: Reader) -> None:
        self.paths, self.columns = [made.source.path(number) for number in range(len(made.shards))], made.columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        for path in self.paths[worker.id :: worker.num_workers]:
            for batch in pq.ParquetFile(path).iter_batches(columns=self.columns):
                yield from batch.to_pylist()


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    names = [name for name, value in rows[0].items() if isinstance(value, list)]
    return {name: torch.cat([torch.as_tensor(row[name]) for row in rows]) for name in names}


def data_loader(made: Reader) -> int:
    loader = torch.utils.data.DataLoader(_Rows(made), batch_size=96, num_workers=THREADS, collate_fn=_collate)
    return sum(len(batch["item"]) for batch in loader)


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
    found = {}
    for count in (10, 10_000):
        shards = [manifest.shards["train"][number % len(manifest.shards["train"])] for number in range(count)]
        save_manifest(manifest.model_copy(update={"shards": manifest.shards | {"train": shards}}), url)
        manifest_seconds, seconds = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            many = load_manifest(url)
            manifest_seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            next(iter(reader(url, manifest=many, shuffle_buffer=100_000).epoch(0)))
            seconds.append(time.perf_counter() - began)
        found[f"{count} shards"] = round(statistics.median(seconds), 3)
        found[f"{count} shards, reading the manifest"] = round(statistics.median(manifest_seconds), 3)
    save_manifest(manifest, url)
    return found


def measure(url: str, folder: Path, rounds: int, peers: bool) -> dict[str, Any]:
    """All comparisons on the prepared data set `url`, which is put into a server whose data are in `folder`."""
    result: dict[str, Any] = {
        "events": load_manifest(url).counts["events"],
        "local, all columns (IntentRec)": compared(reader(url), rounds, pyarrow=decoded),
        "local, items and times (SASRec)": compared(reader(url, features=False), rounds, pyarrow=decoded),
    }
    if peers:
        result["other loaders"] = compared(reader(url), 3, DataLoader=data_loader, RayData=ray_data)
    store = ObjectStore(folder)
    store.start()
    try:
        os.environ.update(store.environment)
        store.make_bucket("ingest")
        store.filesystem().put(url, "ingest/data", recursive=True)
        result["S3"] = compared(reader("s3://ingest/data"), rounds, pyarrow=decoded, bytes_alone=fetched)
        result["start_up"] = start_up("s3://ingest/data", rounds)
    finally:
        store.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=float, default=5e6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="also Ray Data and a DataLoader (slow)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    users = max(int(options.events) // 88, 100)
    log = [f"simulate.users={users}", "simulate.items=50000"]
    with prepared("configs/demo.yaml", log) as config, tempfile.TemporaryDirectory() as folder:
        found = measure(config.data_folder, Path(folder), options.rounds, options.peers)
    print(json.dumps(header("reading") | found, indent=1))


if __name__ == "__main__":
    main()
