"""A feature as it is declared and as it is prepared, and what a kind of feature has to do.

A kind is one class in one file, registered by its name: how it is checked, read from raw columns, counted over the
training data, fitted, encoded, stored, loaded and gathered. All others ask `kind_of` and know no kind by name.

    N  values: of so many events or items
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from ingest.arrays.jagged import Column
from ingest.raw import columns as raw
from ingest.registry import Registry
from ingest.settings import SettingError, Settings

PADDING, UNKNOWN, FIRST_VALUE = 0, 1, 2
"""Index 0 of every vocabulary is padding, 1 is unknown or missing; values begin at 2."""

RESERVED = frozenset(
    ["user", "item", "time", "duration", "targets", "candidates", "index", "id", "count", "exists", "title"]
)

LookUp: TypeAlias = Callable[[pl.Series], NDArray[np.int32]]
"""The index, in a feature's vocabulary, of each of some values that are all different; `UNKNOWN` where it is not."""


def _registered(kind: str) -> str:
    KINDS[kind]
    return kind


KindName = Annotated[str, AfterValidator(_registered)]


class Feature(Settings):
    """One declared column: an attribute of the event or of its item.

    Kinds: `category` (one value), `categories` (a list of values), `number` (standardised with the training
    data's mean and deviation; with `bins` a category instead), `elapsed` (the time from a date until the event,
    in bins: an age), and those that a module of one's own registers. An intent is a feature that is also predicted for
    the next interaction.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    """What it is called everywhere; also its column, where `column` names none."""
    kind: KindName = "category"
    """`category`, `categories`, `number`, `elapsed`, `repeat`, or one that an extension registers."""
    of: Literal["event", "item"] = "event"
    """Which of the two tables has it."""
    column: str | None = None
    """The column that holds it; by default the one called like the feature."""
    intent: bool = False
    """Whether it is also predicted for the next interaction."""
    min_count: int = Field(default=1, ge=1)
    """Values that the training data have less often than this are unknown."""
    bins: list[str | float] | int | None = None
    """Upper edges of the bins (durations such as 7d for `elapsed`), or a number of bins of equal frequency."""
    bin_labels: list[str] | None = None
    """What the report calls the bins, from the lowest: one more than there are edges."""
    unit: Literal["year", "s", "ms", "us", "ns"] | None = None
    """Of an `elapsed` whose column has integers: years, or a unit since 1970; by default data.time_unit."""
    first_of: dict[str, str] | None = None
    """A rule instead of a column: label -> flag column; the first flag that is true gives the label."""
    otherwise: str = "none"
    """The label of `first_of` where no flag is true."""
    since_first_event: bool = False
    """An `elapsed` of the item that counts from its first event in the training data, or, where training has none, in
    the log. No `age` of a model's `knows`: when an item will first be taken tells the target."""
    at_request: bool = False
    """Of an event feature: its value is known when the request is made, before the item is chosen (a device, a place, a
    referrer), so that a model that knows the request has it as an input for the next interaction."""

    @model_validator(mode="after")
    def _check(self) -> Feature:
        if self.name in RESERVED:
            raise SettingError("name", f"this name is taken; not allowed: {', '.join(sorted(RESERVED))}")
        kind_of(self).check(self)
        if self.at_request and (self.of == "item" or not has_one_index(self)):
            raise SettingError("at_request", "takes an event's feature with one value of a vocabulary or of bins")
        if self.at_request and not kind_of(self).columns(self):
            raise SettingError(
                "at_request", f"kind {self.kind} is made of the item, which is chosen later: leave it out"
            )
        if self.at_request and self.intent:
            raise SettingError("at_request", "what is known at the request is nothing to predict: leave out intent")
        return self

    @property
    def source(self) -> str:
        """The column that the feature is read from (not for `first_of` and `since_first_event`)."""
        return self.column or self.name

    @property
    def is_number(self) -> bool:
        """Whether the model sees a standardised number and not an index."""
        return kind_of(self).is_number(self)


class PreparedFeature(Settings):
    """A feature as the model sees it: one value for each interaction, or a list; indices of a table, or a number."""

    name: str
    kind: KindName
    of: Literal["event", "item"]
    intent: bool
    at_request: bool = False
    size: int
    """Rows of its table, padding and unknown included; 0 for a number."""
    edges: list[float] = []
    """Upper bin edges, in milliseconds for `elapsed`: a value v has index 2 + (number of edges <= v)."""
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def is_number(self) -> bool:
        return self.size == 0

    @property
    def is_list(self) -> bool:
        """Whether an interaction has a list of values."""
        return kind_of(self).is_list

    @property
    def stored_type(self) -> pa.DataType:
        """The type of one interaction's value in a shard."""
        value = pa.float32() if self.is_number else pa.int32()
        return pa.list_(value) if self.is_list else value


@dataclass(frozen=True)
class Base:
    """What a feature was in the data set that grows."""

    feature: PreparedFeature
    values: pl.Series | None
    """Of its vocabulary from `FIRST_VALUE` on, as text; None for a number."""


@dataclass(frozen=True)
class Fitted:
    """What the training data teach of a feature."""

    feature: PreparedFeature
    vocabulary: pl.DataFrame | None = None
    """Columns value, index, count, in the order of the index; None for a number."""


class Kind:
    """What a kind does, and how most of them do it; without state.

    Values are what `read` gives, one for each event or item; `seen_at` an event, and as Arrow after `compact`.
    """

    is_list: ClassVar[bool] = False
    """Whether an interaction has a list of values."""
    of_time: ClassVar[bool] = False
    """Whether what an event sees depends on its time; the item table then has what was read, an int64 or null."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """The keys of `Feature` that this kind takes besides those of all kinds."""

    def check(self, feature: Feature) -> None:
        """Raise `SettingError` where a key of the feature does not suit."""
        options = frozenset(["bins", "bin_labels", "unit", "first_of", "since_first_event"])
        for key in sorted(options - self.takes):
            if getattr(feature, key) not in (None, False):
                raise SettingError(key, f"a feature of kind {feature.kind} does not take it")

    def is_number(self, feature: Feature) -> bool:
        """Whether the model sees a number and not an index."""
        return False

    def in_bins(self, feature: Feature | PreparedFeature) -> bool:
        """Whether its vocabulary names bins, which are counted when events are encoded."""
        return False

    def columns(self, feature: Feature) -> list[str]:
        """The raw columns that it is read from."""
        return [feature.source]

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        """The values [N], each checked. Raises `InputError` with column and value."""
        raise NotImplementedError

    def derive(self, user_N: NDArray[np.int64], item_N: NDArray[np.int64]) -> pa.Array:
        """The values of events, by user and each user's by time, of a kind that is read from no column."""
        raise NotImplementedError

    def seen_at(self, values: pl.Series, time: pl.Series) -> pl.Series:
        """What events at `time` (milliseconds since 1970) see of what was read, which may depend on it: `of_time`."""
        return values

    def compact(self, values: pa.Array) -> pa.Array:
        """The values as they are kept until they are encoded."""
        return values

    def learns(self, feature: Feature) -> bool:
        """Whether `fit` has to know what the training data have; otherwise they are not counted."""
        return True

    def count(self, feature: Feature, values: pa.Array, weights: NDArray[np.int64] | None = None) -> pl.DataFrame:
        """What `fit` has to know of some training values; `weights`: how often each item is in the training data."""
        raise NotImplementedError

    def merge(self, counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """What `count` gave of several parts, put together; in the same form."""
        raise NotImplementedError

    def fit(self, feature: Feature, counted: pl.DataFrame | None, base: Base | None) -> Fitted:
        """The feature as it is prepared; with `base`, its indices, bins and scale stay."""
        raise NotImplementedError

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        """The values as the model sees them: int32 indices, float32 numbers or lists of indices."""
        raise NotImplementedError

    def special_rows(self, feature: PreparedFeature) -> pa.Array:
        """What the item table has for padding and for unknown items, where it has encoded values."""
        numbers = pa.array([0.0, 0.0], pa.float32())
        return numbers if feature.is_number else pa.array([PADDING, UNKNOWN], pa.int32())

    def load(self, column: pa.Array) -> Column:
        """A column of the item table in memory."""
        return column.to_numpy(zero_copy_only=False)

    def at_event(self, feature: PreparedFeature, values: Column, time_N: NDArray[np.int64]) -> Column:
        """What events at `time_N` see of their items' `values` [N], as `load` gives them."""
        return values


KINDS: Registry[Kind] = Registry(
    "kind of feature",
    {name: f"ingest.features.{name}" for name in ("category", "categories", "number", "elapsed", "repeat")},
)


F = TypeVar("F", Feature, PreparedFeature)


def kind_of(feature: Feature | PreparedFeature) -> Kind:
    return KINDS[feature.kind]


def is_attribute(feature: Feature | PreparedFeature) -> bool:
    """Whether it is the same for an item at any time, and has a vocabulary or bins."""
    return feature.of == "item" and not feature.is_number and not kind_of(feature).of_time


def dated(features: Sequence[F]) -> F | None:
    """The first feature that gives items a date, from which their age counts."""
    return next((f for f in features if f.of == "item" and kind_of(f).of_time), None)


def has_one_index(feature: Feature | PreparedFeature) -> bool:
    """Whether an interaction has one value of it, of a vocabulary or of bins."""
    return not feature.is_number and not kind_of(feature).is_list


def register(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """A decorator that registers a subclass of `Kind`, so that features may have it as their `kind`."""

    def added(cls: type[Kind]) -> type[Kind]:
        KINDS.add(name)(cls())
        return cls

    return added


def as_declared(base: PreparedFeature, feature: Feature) -> PreparedFeature:
    """What a data set that grows has learned of a feature, for what it is declared as now."""
    return base.model_copy(update={"intent": feature.intent, "at_request": feature.at_request})


def prepared(
    feature: Feature, size: int, edges: list[float] | None = None, mean: float = 0.0, deviation: float = 1.0
) -> PreparedFeature:
    """The feature as the manifest has it."""
    same = feature.model_dump(include={"name", "kind", "of", "intent", "at_request"})
    return PreparedFeature(**same, size=size, edges=edges or [], mean=mean, deviation=deviation)
