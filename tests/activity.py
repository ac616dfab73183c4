"""The activity of a prepared data set, counted in plain Python from its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.data.activity import BUCKET
from ingest.data.manifest import load_manifest


def events_of(url: str) -> Iterator[tuple[int, int, bool]]:
    """Item, time and whether it is of training, of every event: test and rest have every user's whole history."""
    manifest = load_manifest(url)
    for split in ("test", "rest"):
        for shard in manifest.shards[split]:
            table = pq.read_table(Path(url) / shard.path, columns=["item", "time"]).to_pylist()
            for row in table:
                held_out = 2 if len(row["item"]) >= 3 else 0
                for place, (item, time) in enumerate(zip(row["item"], row["time"], strict=True)):
                    last = place >= len(row["item"]) - held_out
                    in_time = manifest.split["kind"] == "point_in_time"
                    yield item, time, time <= manifest.last_time if in_time else not last


def write_activity(url: str) -> None:
    """Two files, of the items up to the tenth and of those behind."""
    training: Counter[tuple[int, int]] = Counter()
    total: Counter[tuple[int, int]] = Counter()
    for item, time, of_training in events_of(url):
        total[item, time // BUCKET] += 1
        training[item, time // BUCKET] += of_training
    folder = Path(url) / "activity"
    folder.mkdir()
    for part, chosen in enumerate([sorted(key for key in total if (key[0] < 10) is low) for low in (True, False)]):
        rows = [
            {"item": item, "bucket": bucket, "training": training[item, bucket], "total": total[item, bucket]}
            for item, bucket in chosen
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{part:05d}.parquet")
