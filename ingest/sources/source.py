"""What makes a log: a config's section with a `kind`, looked up by its name.

A new source is one file: a subclass of `Source` under `@SOURCES.add("its kind")`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ingest.registry import Registry
from ingest.settings import Kinded


class Source(Kinded):
    """One data source: the keys of its section, and how it writes a log."""

    events_path: ClassVar[str] = "events"
    items_path: ClassVar[str] = "items"
    """Where the two lie in the folder that `make` fills: Parquet files or folders of them."""

    @classmethod
    def class_of(cls, kind: str | None) -> type[Source]:
        return SOURCES[kind or "movielens"]

    def make(self, destination: str) -> dict[str, Any]:
        """Write events and items below the folder or URL `destination`; gives counts by name (users, items, events)."""
        raise NotImplementedError


SOURCES: Registry[type[Source]] = Registry(
    "data source", {"simulate": "ingest.sources.simulate", "movielens": "ingest.sources.movielens"}
)
