"""How fast shards become batches, against bare reads of the same files and against other loaders. Prints JSON.

    python -m benchmarks.ingest                # 5 million simulated events, local disk and an S3 server
    python -m benchmarks.ingest --events 2e6 --peers      # also a DataLoader and Ray Data: slow

All sides read the same columns of the same training shards on two threads, alternating in one run; a figure is the
median over the repeats. Ratios are of interactions per second, ours over theirs. Ours are batches as the trainer takes
them: checked, shuffled, cut by tokens, with the items' attributes and the intents of the targets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cluster.config import Config
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest, save_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from ingest.prepare.pipeline import prepare
from ingest.settings import load_settings
from ingest.storage import arrow_filesystem
from tests.s3 import ObjectStore

THREADS = 2
ROOT = Path(__file__).resolve().parents[1]


def make_data(folder: Path, events: int) -> str:
    """A simulated log of about `events` events, prepared with the demo's features."""
    users = max(events // 88, 100)
    overrides = [f"storage={folder}", f"simulate.users={users}", "simulate.items=50000"]
    config = load_settings(Config, ROOT / "configs" / "demo.yaml", overrides)
    assert config.simulate is not None
    config.simulate.make(config.log_folder)
    prepare(config.prepared_input(), config.data_folder, lambda _: None)
    return config.data_folder


def reader(url: str, features: bool = True, manifest: Manifest | None = None, **settings: Any) -> Reader:
    manifest = manifest or load_manifest(url)
    config = ReaderConfig.model_validate({"tokens": 8192, "fetch": THREADS} | settings)
    return Reader(url, manifest, load_items(url, manifest), "train", config, features=features)


def ours(url: str, features: bool = True) -> Callable[[], int]:
    """An epoch of batches; gives the interactions read."""
    made = reader(url, features)

    def run() -> int:
        for _ in made.epoch(0):
            pass
        return sum(shard.interactions for shard in made.shards)

    return run


def decoded(url: str, features: bool = True) -> Callable[[], int]:
    """What pyarrow.parquet alone takes to decode the same columns, each thread an equal part of every shard."""
    made = reader(url, features)

    def read(shard: int, part: int) -> int:
        filesystem, path = arrow_filesystem(made.source.path(shard))
        count = 0
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True) as file:
            for group in range(part, file.num_row_groups, THREADS):
                table = file.read_row_group(group, columns=made.columns, use_threads=False)
                count += len(table["item"].combine_chunks().flatten())
        return count

    def run() -> int:
        parts = [(shard, part) for shard in range(len(made.shards)) for part in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(read, *zip(*parts, strict=True)))

    return run


def fetched(url: str) -> Callable[[], int]:
    """A read of the same objects' bytes, nothing decoded."""
    made = reader(url)

    def read(number: int) -> int:
        filesystem, path = arrow_filesystem(made.source.path(number))
        with filesystem.open_input_file(path) as file:
            file.read()
        return made.shards[number].interactions

    def run() -> int:
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(read, range(len(made.shards))))

    return run


class _Rows(torch.utils.data.IterableDataset[dict[str, Any]]):
    """What one writes first: a DataLoader over pyarrow, a user's lists as tensors."""

    def __init__(self, made: Reader) -> None:
        self.made = made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        numbers = (
            range(worker.id, len(self.made.shards), worker.num_workers) if worker else range(len(self.made.shards))
        )
        for number in numbers:
            for batch in pq.ParquetFile(self.made.source.path(number)).iter_batches(columns=self.made.columns):
                yield from batch.to_pylist()


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    names = [name for name, value in rows[0].items() if isinstance(value, list)]
    return {name: torch.cat([torch.as_tensor(row[name]) for row in rows]) for name in names}


def data_loader(url: str) -> Callable[[], int]:
    made = reader(url)

    def run() -> int:
        loader = torch.utils.data.DataLoader(_Rows(made), batch_size=96, num_workers=THREADS, collate_fn=_collate)
        return sum(len(batch["item"]) for batch in loader)

    return run


def ray_data(url: str) -> Callable[[], int]:
    import ray.data

    made = reader(url)
    paths = [str(Path(made.source.path(number)).absolute()) for number in range(len(made.shards))]

    def collate(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {n: torch.from_numpy(np.concatenate(v)) for n, v in batch.items() if v.dtype == object and n != "user"}

    def run() -> int:
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.read_parquet(paths, columns=made.columns)
        batches = data.iter_torch_batches(batch_size=96, collate_fn=collate, local_shuffle_buffer_size=20_000)
        return sum(len(batch["item"]) for batch in batches)

    return run


def alternating(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, Any]:
    """Interactions per second of every side, and the ratio of the first to each of the others."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            count = side()
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, *others = rates
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(rates[first], rates[name], strict=True)), 3)
        for name in others
    }
    return {"interactions_per_second": {name: round(value) for name, value in medians.items()}, "ratio": ratios}


def python_time(url: str) -> list[dict[str, float]]:
    """Seconds to build a batch by its size, in one thread: the part that does not grow is Python's."""
    made = reader(url)
    rows = next(made.rows())
    found = []
    for tokens in (1_000, 8_000, 64_000):
        count = max(1, int(tokens / rows.lengths.mean()))
        index = np.random.default_rng(0).permutation(len(rows))[:count]
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            batch = made.builder.build(rows, index)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        found.append({"tokens": batch.tokens, "ms": round(1e3 * median, 3), "us_per_1000_tokens":
                      round(1e9 * median / batch.tokens, 1)})  # fmt: skip
    return found


def start_up(url: str, repeats: int) -> dict[str, float]:
    """Seconds from the manifest to the first batch, and to read it, by the number of shards in the manifest.

    The manifest of many names each real shard many times: nothing is read of those that are not needed.
    """
    manifest = load_manifest(url)
    found = {}
    for count in (10, 10_000):
        shards = [manifest.shards["train"][number % len(manifest.shards["train"])] for number in range(count)]
        save_manifest(manifest.model_copy(update={"shards": manifest.shards | {"train": shards}}), url)
        manifest_seconds, seconds = [], []
        for _ in range(repeats):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=float, default=5e6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="also Ray Data and a DataLoader (slow)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = make_data(folder, int(options.events))
        result: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "events": load_manifest(url).counts["events"],
            "local": {
                name: {"columns": reader(url, features).columns}
                | alternating({"ours": ours(url, features), "pyarrow decode": decoded(url, features)}, options.repeats)
                for name, features in (("intentrec", True), ("sasrec", False))
            },
            "build": python_time(url),
        }
        if options.peers:
            peers = {"ours": ours(url), "DataLoader": data_loader(url), "Ray Data": ray_data(url)}
            result["peers"] = alternating(peers, 3)
        store = ObjectStore(folder / "s3")
        store.start()
        try:
            os.environ.update(store.environment)
            store.make_bucket("ingest")
            store.filesystem().put(url, "ingest/data", recursive=True)
            remote = "s3://ingest/data"
            sides = {"ours": ours(remote), "pyarrow decode": decoded(remote), "bytes alone": fetched(remote)}
            result["s3"] = alternating(sides, options.repeats)
            result["start_up"] = start_up(remote, options.repeats)
        finally:
            store.stop()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
