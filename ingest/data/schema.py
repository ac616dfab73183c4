"""What a log looks like, as its owner declares it: the columns, their kinds, which are intents, and the split.

Nothing about films or shops is built in: a streaming service's log and a shop's are the same schema with other
names. `DataConfig` is the `data` section of a config.
"""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ingest.durations import parse_duration, since_1970
from ingest.features.feature import Feature, kind_of
from ingest.settings import SettingError, Settings
from ingest.storage import absolute


class Split(Settings):
    """How training, validation and test are told apart.

    `leave_one_out`: each user's last event is the test target, the one before it the validation target.
    `point_in_time`: events of the last `test` span are test targets, those of the `validation` span before it
    validation targets; all else is training.
    """

    kind: Literal["leave_one_out", "point_in_time"] = "leave_one_out"
    """By each user's last two events, or by the last two spans of the log."""
    validation: str | None = None
    """The span before the test's, for `point_in_time`, such as 1d."""
    test: str | None = None
    """The last span of the log, for `point_in_time`, such as 1d."""

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
    """The column of users, integers or text."""
    item: str = "item_id"
    """The column of items, in the log and in the item table, integers or text."""
    time: str = "timestamp"
    """The column of times."""
    time_unit: Literal["datetime", "s", "ms", "us", "ns", "position"] = "datetime"
    """`datetime` for date columns, a unit for integers since 1970, `position` where a log has an order only."""
    duration: str | None = None
    """The column with each event's duration in seconds (or any unit): the weight of its loss."""
    title: str | None = None
    """A column of the item table that the report shows."""
    features: list[Feature] = []
    """What else of events and items is known, and which of it are intents."""
    split: Split = Split()
    """How training, validation and test are told apart."""
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
    """Interactions of a file of prepared sequences, about."""
    row_group_interactions: int = Field(default=32_768, ge=1)
    """Interactions of a row group in it, which is read and set aside as one, about."""

    @field_validator("events", "items", "work")
    @classmethod
    def _anywhere(cls, value: str | None) -> str | None:
        """The same place in every process, whatever folder that runs in."""
        return None if value is None else absolute(value)

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        names = [feature.name for feature in self.features]
        no_times = self.time_unit == "position"
        for place, feature in enumerate(self.features):
            key = f"features[{place}]"
            if feature.name in names[:place]:
                raise SettingError(f"{key}.name", f"feature {feature.name!r} is declared twice")
            if no_times and kind_of(feature).of_time:
                raise SettingError(f"{key}.kind", "needs real times, not time_unit position")
            if feature.of == "item" and kind_of(feature).columns(feature) and self.events and self.items is None:
                raise SettingError(
                    f"{key}.of", "the feature is an attribute of items, but data.items names no item table"
                )
        if no_times and self.until is not None:
            raise SettingError("until", "a log with time_unit position has no moments: leave it out")
        if no_times and self.split.kind == "point_in_time":
            raise SettingError("split.kind", "a log with time_unit position has no point in time: take leave_one_out")
        return self

    @property
    def intents(self) -> list[Feature]:
        return [feature for feature in self.features if feature.intent]

    @property
    def until_milliseconds(self) -> int | None:
        """`until` in milliseconds since 1970."""
        return None if self.until is None else since_1970(self.until)
