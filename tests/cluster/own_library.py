"""A data source of the tests' own: a library's loans."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl

from ingest.sources.registry import Source, register
from ingest.storage import join, open_file

START_MS, DAY_MS = 1_700_000_000_000, 86_400_000


@register
class Library(Source):
    kind: Literal["library"] = "library"
    readers: int = 40

    def make(self, destination: str) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        user = np.repeat(np.arange(self.readers), 8)
        time = START_MS + np.sort(rng.integers(0, 60, len(user))) * DAY_MS
        moments = pl.Series(time).cast(pl.Datetime("ms"))
        loans = pl.DataFrame({"user_id": user, "item_id": rng.zipf(1.6, len(user)) % 25, "timestamp": moments})
        books = pl.DataFrame({"item_id": np.arange(25), "shelf": [f"shelf {item % 4}" for item in range(25)]})
        for path, frame in ((self.events_path, loans), (self.items_path, books)):
            with open_file(join(destination, path), "wb") as file:
                frame.write_parquet(file)
        return {"users": self.readers, "items": 25, "events": loans.height}
