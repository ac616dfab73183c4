"""Requests: who asks for recommendations when, and what is known of it, from a Parquet file or a folder of them.

Columns are called as in the log: the user, the time, and every feature that is `at_request`.

    N  requests     R  rows (users)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers
from ingest.data.manifest import Manifest
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.feature import kind_of
from ingest.features.vocabulary import look_up
from ingest.raw.columns import Column, read_columns
from ingest.raw.files import find_files
from ingest.storage import join


@dataclass(frozen=True)
class Requests:
    """A request of each of N users."""

    place: Mapping[object, int]
    """User -> request, by the log's own ids."""
    time_N: Integers
    """Milliseconds since 1970."""
    features: Mapping[str, NDArray[np.int32]]
    """Indices of the features that are known at the request, [N] each."""

    def places(self, users: Sequence[object]) -> Integers:
        """The request of each of the users, -1 for those who have none: [R]."""
        return np.array([self.place.get(user, -1) for user in users], dtype=np.int64)


def read_requests(url: str, config: DataConfig, manifest: Manifest, data: str) -> Requests:
    """The requests in `url` for the prepared data set `data`, whose log `config` describes.

    Raises `InputError` where a column is missing or of a wrong type, a time is missing, or a user asks twice.
    """
    declared = {feature.name: feature for feature in config.features}
    asked = [feature for feature in manifest.features if feature.at_request]
    names = [config.user, config.time, *(c for f in asked for c in kind_of(f).columns(declared[f.name]))]
    users: list[pl.Series] = []
    times: list[Integers] = []
    indices: dict[str, list[NDArray[np.int32]]] = {feature.name: [] for feature in asked}
    for path in find_files(url, lambda _: None):
        columns = read_columns(path, names)
        users.append(columns[config.user].ids())
        moments = _moments(columns[config.time], config.time_unit)
        times.append(moments.to_numpy().astype(np.int64))
        for feature in asked:
            kind = kind_of(feature)
            read = kind.seen_at(kind.read(declared[feature.name], columns, config.time_unit), moments)
            values = kind.compact(read.to_arrow())
            found = partial(look_up, join(data, "vocab", f"{feature.name}.parquet"))
            indices[feature.name].append(np.asarray(kind.encode(feature, values, found)))
    user_N = _together(url, config.user, users)
    twice = user_N.filter(user_N.is_duplicated())
    if len(twice):
        count = int((user_N == twice[0]).sum())
        raise InputError(f"{url}: column {config.user!r} has the user {twice[0]!r} in {count} rows, takes one")
    place = {user: number for number, user in enumerate(user_N.to_list())}
    return Requests(place, np.concatenate(times), {name: np.concatenate(parts) for name, parts in indices.items()})


def _together(url: str, name: str, users: list[pl.Series]) -> pl.Series:
    """The users of all files, whose integers may be of several widths."""
    integers = [series.dtype.is_integer() for series in users if len(series)]
    if any(integers) and not all(integers):
        raise InputError(f"{url}: column {name!r} has integers in some files and text in others, takes one of them")
    if len({series.dtype for series in users}) > 1 and any(integers):
        users = [series.cast(pl.Int128) for series in users if len(series)]
    return pl.concat(users)


def _moments(column: Column, unit: str) -> pl.Series:
    """The times, each of which there has to be; one in the future is fine."""
    moments = column.moments(unit)
    missing = moments.is_null().arg_true()
    if len(missing):
        raise InputError(f"{column.file}: column {column.name!r} has no value in row {missing[0]}")
    return moments
