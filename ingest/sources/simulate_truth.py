"""A made log read back with what is hidden from it: catalogue and pools, users' tastes, events and their intents.

The events of all users are held in memory, some 20 bytes each. Shapes: E events, by user, then by time; U users, whose
ids are 1, 2, ..., U; N items, whose ids are 1, 2, ..., N; A actions, G genres, C content types, K ages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers, offsets_of
from ingest.errors import InputError
from ingest.sources.simulate import SimulateConfig, rule_tables
from ingest.sources.simulate_rule import ACTIONS, AGES, CONTENT_TYPES, FILM, GENRES, SERIES, Catalogue, Pools
from ingest.storage import exists, join, list_files, open_file, read_text

Array = NDArray[Any]
DAY = 86_400_000
"""Milliseconds."""
NAMES = {"action": ACTIONS, "genre": GENRES, "content_type": CONTENT_TYPES, "age": AGES}


@dataclass(frozen=True)
class Tastes:
    """What U users like: each row of probabilities sums to 1."""

    actions: Array  # (U, A)
    genres: Array  # (U, G)
    content_types: Array  # (U, C)
    ages: Array  # (U, K)

    def take(self, user_Q: Integers) -> Tastes:
        return Tastes(**{name: values[user_Q] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Intents:
    """The hidden intents of E events, as indices, and whether each is that of the event before: (E,) each."""

    action: Array
    genre: Array
    content_type: Array
    age: Array
    kept: Array

    def take(self, event_Q: Integers) -> Intents:
        return Intents(**{name: values[event_Q] for name, values in vars(self).items()})


class MadeLog:
    """The log in `folder`, which `intentrec simulate` has written. What is large is read when it is asked for."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        rule = self._rule()
        self.config = SimulateConfig.model_validate(rule["config"])
        self.first_time = self.config.first_day * DAY
        """The start of the first day, in milliseconds since 1970."""

    def _rule(self) -> dict[str, Any]:
        path = self._truth("rule.json")
        try:
            rule = json.loads(read_text(path))
        except json.JSONDecodeError as malformed:
            raise InputError(f"{path}: is not JSON ({malformed}): simulate the log again") from malformed
        for name, value in rule_tables().items():
            if not name.startswith("device") and rule.get(name) != (list(value) if isinstance(value, tuple) else value):
                raise InputError(f"{path}: {name} is not what this release simulates by: simulate the log again")
        return rule

    def _truth(self, name: str) -> str:
        path = join(self.folder, "truth", name)
        if not exists(path):
            raise InputError(
                f"{self.folder}: there is no truth/{name} in it, so it is not a log that `intentrec simulate` has made"
            )
        return path

    @cached_property
    def pools(self) -> Pools:
        """With the catalogue and the parameters of the rule."""
        shown, hidden = _read(join(self.folder, "items", "items.parquet")), _read(self._truth("items.parquet"))
        genres_NG = np.zeros((len(shown), len(GENRES)), bool)
        lists = shown["genres"].combine_chunks()
        genres_NG[pc.list_parent_indices(lists).to_numpy(), _index(lists.flatten(), GENRES)] = True
        catalogue = Catalogue(
            genres=genres_NG,
            content_type=_index(shown["content_type"], CONTENT_TYPES),
            release_day=shown["release_date"].cast(pa.int32()).to_numpy().astype(np.int64),
            weight=hidden["popularity"].to_numpy(),
            franchise=hidden["franchise"].to_numpy(),
            episodes=hidden["episodes"].to_numpy(),
        )
        return Pools(catalogue, self.config.rule, self.config.first_day, self.config.days)

    @cached_property
    def tastes(self) -> Tastes:
        """Of all users."""
        users = _read(self._truth("users.parquet"))
        lists = {name: np.stack(users[name].to_numpy()) for name in ("actions", "taste", "ages")}
        types_UC = np.empty((len(users), len(CONTENT_TYPES)))
        types_UC[:, SERIES] = users["series_share"].to_numpy()
        types_UC[:, FILM] = 1 - types_UC[:, SERIES]
        return Tastes(lists["actions"], lists["taste"], types_UC, lists["ages"])

    @cached_property
    def intents(self) -> Intents:
        """Of all events."""
        self._truth("intents")
        table = self._parts("truth/intents", [*NAMES, "kept"])
        found = {name: _index(table[name], names).astype(np.int8) for name, names in NAMES.items()}
        return Intents(kept=table["kept"].to_numpy(), **found)

    @cached_property
    def _events(self) -> tuple[Integers, Integers, Integers, Integers]:
        table = self._parts("events", ["user_id", "timestamp", "item_id", "action"])
        user, time, item = (table[name].cast(pa.int64()).to_numpy() for name in ("user_id", "timestamp", "item_id"))
        offsets_U = offsets_of(np.bincount(user - 1, minlength=self.config.users))
        return offsets_U, time, (item - 1).astype(np.int32), _index(table["action"], ACTIONS).astype(np.int8)

    def _parts(self, folder: str, columns: list[str]) -> pa.Table:
        parts = sorted(list_files(join(self.folder, folder), ".parquet"))
        if not parts:
            raise InputError(f"{join(self.folder, folder)}: there is no Parquet file in it: simulate the log again")
        return pa.concat_tables([_read(path, columns) for path in parts])

    @property
    def offsets(self) -> Integers:
        """Where the events of each user begin: (U + 1,)."""
        return self._events[0]

    @property
    def time(self) -> Integers:
        """Of each event, in milliseconds since 1970."""
        return self._events[1]

    @property
    def item(self) -> Integers:
        """Of each event, as an index into the catalogue."""
        return self._events[2]

    @property
    def action(self) -> Integers:
        """What the log shows of each event, as an index into `ACTIONS`."""
        return self._events[3]


def _read(path: str, columns: list[str] | None = None) -> pa.Table:
    try:
        with open_file(path) as file:
            return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: can not be read as Parquet ({error}): simulate the log again") from error


def _index(labels: Any, names: tuple[str, ...]) -> Array:
    """The place of each label in `names`."""
    plain = labels.cast(pa.string())
    found: Array = pc.index_in(plain, value_set=pa.array(names)).to_numpy().astype(np.int64)
    return found
