"""What a log looks like, as its owner declares it: the columns, their kinds, which are intents, and the split.

Nothing about films or shops is built in: a streaming service's log and a shop's are the same schema with other
names. `DataConfig` is the `data` section of a config; `parse_duration` reads its spans of time.
"""

from __future__ import annotations

import datetime
import itertools
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ingest.settings import Settings

PADDING, UNKNOWN, FIRST_VALUE = 0, 1, 2
"""Index 0 of every vocabulary is padding, 1 is unknown or missing; values begin at 2."""

RESERVED = frozenset(["user", "item", "time", "duration", "targets", "candidates", "index", "id", "count", "title"])
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def parse_duration(text: str | int | float) -> int:
    """`"90s"`, `"7d"`, `"1.5h"` ... in milliseconds. A bare number stands for itself (positions, for example)."""
    if isinstance(text, int | float):
        return int(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", text)
    if match is None:
        raise ValueError("takes a number with a unit ms, s, m, h, d or w, such as 7d")
    return round(float(match[1]) * _UNITS_MS[match[2]])


class Feature(Settings):
    """One declared column: an attribute of the event or of its item.

    Kinds: `category` (one value), `categories` (a list of values), `number` (standardised with the training
    data's mean and deviation; with `bins` a category instead), `elapsed` (the time from a date until the event,
    in bins: an age). An intent is a feature that is also predicted for the next interaction.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    kind: Literal["category", "categories", "number", "elapsed"] = "category"
    of: Literal["event", "item"] = "event"
    column: str | None = None
    """The column that holds it; by default the one called like the feature."""
    intent: bool = False
    min_count: int = Field(default=1, ge=1)
    """Values that the training data have less often than this are unknown."""
    bins: list[str | float] | int | None = None
    """Upper edges of the bins (durations such as 7d for `elapsed`), or a number of bins of equal frequency."""
    bin_labels: list[str] | None = None
    first_of: dict[str, str] | None = None
    """A rule instead of a column: label -> flag column; the first flag that is true gives the label."""
    otherwise: str = "none"
    """The label of `first_of` where no flag is true."""
    since_first_event: bool = False
    """An `elapsed` of the item that counts from the item's first event in the training data."""

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.name in RESERVED:
            raise ValueError(f"feature name {self.name!r} is taken; not allowed: {', '.join(sorted(RESERVED))}")
        if self.kind == "elapsed" and self.bins is None:
            raise ValueError(f"feature {self.name!r} of kind elapsed needs bins, such as [7d, 30d]")
        if self.bins is not None and self.kind not in ("number", "elapsed"):
            raise ValueError(f"feature {self.name!r} of kind {self.kind} takes no bins; number and elapsed do")
        if self.intent and self.kind == "number" and self.bins is None:
            raise ValueError(f"feature {self.name!r}: a number is an intent only with bins")
        if self.first_of is not None and (self.kind != "category" or self.of != "event" or self.column is not None):
            raise ValueError(f"feature {self.name!r}: first_of goes with kind category, of event and without a column")
        if self.since_first_event and (self.kind != "elapsed" or self.of != "item" or self.column is not None):
            raise ValueError(
                f"feature {self.name!r}: since_first_event goes with kind elapsed, of item, without a column"
            )
        self._check_bins()
        return self

    def _check_bins(self) -> None:
        if isinstance(self.bins, int) and self.bins < 2:
            raise ValueError(f"feature {self.name!r}: takes at least 2 bins")
        if isinstance(self.bins, list):
            edges = self.edges()
            if not edges or any(later <= earlier for earlier, later in itertools.pairwise(edges)):
                raise ValueError(f"feature {self.name!r}: bin edges must rise and there must be one at least")
        if self.bin_labels is not None:
            count = self.bins if isinstance(self.bins, int) else len(self.bins or []) + 1
            if len(self.bin_labels) != count:
                raise ValueError(
                    f"feature {self.name!r}: {count} bins take {count} bin_labels, not {len(self.bin_labels)}"
                )

    def edges(self) -> list[float]:
        """The upper edges of declared bins, in milliseconds for `elapsed`; empty where they come from the data."""
        if not isinstance(self.bins, list):
            return []
        if self.kind == "elapsed":
            return [parse_duration(edge) for edge in self.bins]
        return [float(edge) for edge in self.bins]

    @property
    def source(self) -> str:
        """The column that the feature is read from (not for `first_of` and `since_first_event`)."""
        return self.column or self.name

    @property
    def is_number(self) -> bool:
        """Whether the model sees a standardised number and not an index."""
        return self.kind == "number" and self.bins is None


class Split(Settings):
    """How training, validation and test are told apart.

    `leave_one_out`: each user's last event is the test target, the one before it the validation target.
    `point_in_time`: events of the last `test` span are test targets, those of the `validation` span before it
    validation targets; all else is training.
    """

    kind: Literal["leave_one_out", "point_in_time"] = "leave_one_out"
    validation: str | None = None
    test: str | None = None

    @field_validator("validation", "test")
    @classmethod
    def _spans(cls, value: str | None) -> str | None:
        if value is not None and parse_duration(value) <= 0:
            raise ValueError("takes a span of time over 0, such as 1d")
        return value

    @model_validator(mode="after")
    def _check(self) -> Split:
        given = self.validation is not None, self.test is not None
        if self.kind == "point_in_time" and not all(given):
            raise ValueError("split point_in_time needs both spans, validation and test, such as 1d")
        if self.kind == "leave_one_out" and any(given):
            raise ValueError("split leave_one_out takes no spans validation and test")
        return self


class DataConfig(Settings):
    """The `data` section: where the log is and what its columns mean."""

    events: str | None = None
    """A Parquet file or a folder of them, local or s3://; filled in by the simulate and import stages."""
    items: str | None = None
    """The item table, a Parquet file or folder; a log without one is fine."""
    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_unit: Literal["datetime", "s", "ms", "us", "ns", "position"] = "datetime"
    """`datetime` for date columns, a unit for integers since 1970, `position` where a log has an order only."""
    duration: str | None = None
    """The column with each event's duration in seconds (or any unit): the weight of its loss."""
    title: str | None = None
    """A column of the item table that the report shows."""
    features: list[Feature] = []
    split: Split = Split()
    until: datetime.datetime | None = None
    """Events at or after this moment (UTC) are left out, and counted: for a log with a few stray last events."""
    min_item_count: int = Field(default=1, ge=1)
    """Items that the training data have less often than this are unknown."""
    min_user_events: int = Field(default=1, ge=1)
    """Users with fewer events than this are left out, and counted."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to events that agree in every declared column."""
    unknown_items: Literal["keep", "error"] = "keep"
    """Events whose item the item table lacks: kept without attributes and counted, or refused."""
    partition_events: int = Field(default=2_000_000, ge=1)
    """Events that a task of preparing has in memory at a time, about: users are dealt to partitions of that size."""
    grow: bool = False
    """Where the folder has prepared data already, new events add to them: `events` names all files, old and new, and
    the vocabularies keep their indices (new values get new ones), bins and means."""
    work: str | None = None
    """Where preparing spills to, a folder that all machines see; by default in the folder of the prepared data."""
    shard_interactions: int = Field(default=2_000_000, ge=1)
    row_group_interactions: int = Field(default=32_768, ge=1)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"feature {twice[0]!r} is declared twice")
        if self.time_unit == "position":
            if self.until is not None:
                raise ValueError("a log with time_unit position has no moments: leave out data.until")
            if self.split.kind == "point_in_time":
                raise ValueError("a log with time_unit position has no point in time: take split leave_one_out")
            elapsed = [feature.name for feature in self.features if feature.kind == "elapsed"]
            if elapsed:
                raise ValueError(f"feature {elapsed[0]!r} of kind elapsed needs real times, not time_unit position")
        of_items = [f.name for f in self.features if f.of == "item" and not f.since_first_event]
        if self.items is None and self.events is not None and of_items:
            raise ValueError(f"feature {of_items[0]!r} is an attribute of items, but data.items names no item table")
        return self

    @property
    def intents(self) -> list[Feature]:
        return [feature for feature in self.features if feature.intent]

    @property
    def until_milliseconds(self) -> int | None:
        """`until` in milliseconds since 1970."""
        if self.until is None:
            return None
        return round(self.until.replace(tzinfo=self.until.tzinfo or datetime.UTC).timestamp() * 1000)
