"""The events of a prepared data set, in plain Python from its shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from ingest.data.manifest import load_manifest


def events_of(url: str) -> Iterator[tuple[int, int, bool]]:
    """Item, time and whether it is of training, of every event: test and rest have every user's whole history."""
    for row in histories_of(url):
        yield from row


def histories_of(url: str) -> Iterator[list[tuple[int, int, bool]]]:
    """The same, user by user."""
    manifest = load_manifest(url)
    for split in ("test", "rest"):
        for shard in manifest.shards[split]:
            table = pq.read_table(Path(url) / shard.path, columns=["item", "time"]).to_pylist()
            for row in table:
                held_out = 2 if len(row["item"]) >= 3 else 0
                in_time, end = manifest.split["kind"] == "point_in_time", len(row["item"]) - held_out
                yield [
                    (item, time, time <= manifest.last_time if in_time else place < end)
                    for place, (item, time) in enumerate(zip(row["item"], row["time"], strict=True))
                ]
