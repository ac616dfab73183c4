"""Data sources: what makes or imports a log. A source is one class in one file, registered by its kind.

Built-in ones are imported when they are asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from ingest.registry import Registry
from ingest.settings import Kinded


class Source(Kinded):
    """Base of a source's section of the config; `kind` needs a default, the name that it is registered by."""

    events_path: ClassVar[str] = "events.parquet"
    items_path: ClassVar[str] = "items.parquet"
    """Where `make` writes the log and the items, files or folders below its destination."""

    @classmethod
    def class_of(cls, kind: str | None) -> type[Source]:
        return SOURCES[kind or "movielens"]

    def files(self) -> dict[str, str]:
        """The files that it is made of, each with its size and time of change (or ETag); none of a simulation."""
        return {}

    @abstractmethod
    def make(self, destination: str) -> dict[str, Any]:
        """Write events and items below `destination`, a folder or s3://, as Parquet.

        Returns what was made: counts (users, items, events ...) are integers. Raises `InputError` for bad input.
        """


S = TypeVar("S", bound=Source)
SOURCES: Registry[type[Source]] = Registry(
    "data source", {"simulate": "ingest.sources.simulate", "movielens": "ingest.sources.movielens"}
)


def register(source: type[S]) -> type[S]:
    """A decorator that makes a source known by the default of its `kind`."""
    SOURCES.add(source.model_fields["kind"].default)(source)
    return source
