"""A made log like a streaming service's, of any size, with the hidden intent behind each event known.

Why: nothing to download, and because the rule is known (`simulate_rule`) so is the best that any predictor
could reach. Users come in fixed blocks, each drawn by its own generator seeded by (seed, block): the bytes written
are the same on any number of processes. In a block all users take their n-th event in one vectorised step.

Cost: 6 to 10 microseconds an event and core; drawing a block of 2,000 users peaks at some 70 MB for 90 days (490 MB
for ten years), and each process holds the catalogue and its pools (190 bytes an item). Each block
goes to its own Parquet part as soon as it is drawn.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from ingest import storage
from ingest.errors import InputError
from ingest.sources import simulate_rule as rule_module
from ingest.sources import simulate_world as world_module
from ingest.sources.registry import Source, register
from ingest.sources.simulate_rule import (
    ACTIONS,
    AGES,
    CONTENT_TYPES,
    GENRES,
    KIDS,
    Catalogue,
    Memory,
    Pools,
    Rule,
    States,
)
from ingest.sources.simulate_world import DEVICES, CatalogueSettings, Timeline, Users, UserSettings

Array = NDArray[Any]

BLOCK_USERS = 2_000
SESSIONS_A_USER = 100_000  # session_id = user_id * this + the session's number


@register
class SimulateConfig(Source):
    """What `simulate` makes. The same values give the same bytes, whatever `processes` is."""

    kind: Literal["simulate"] = "simulate"
    events_path: ClassVar[str] = "events"
    items_path: ClassVar[str] = "items"
    users: int = Field(default=20_000, ge=1)
    """Users with 3 events or more."""
    items: int = Field(default=5_000, ge=20)
    """Of the catalogue; a series is one."""
    days: int = Field(default=90, ge=1, le=3_650)
    """Of the log, from `start` on."""
    seed: int = Field(default=0, ge=0)
    """Of all draws."""
    start: datetime.date = Field(
        default=datetime.date(2024, 1, 1), ge=datetime.date(1980, 1, 1), le=datetime.date(2100, 1, 1)
    )
    """The first day."""
    user: UserSettings = UserSettings()
    """What the users are like."""
    catalogue: CatalogueSettings = CatalogueSettings()
    """What the catalogue is like."""
    rule: Rule = Rule()
    """By what events are drawn."""
    processes: int | None = Field(
        default=None, ge=1, description="default: one for each core that this process may use"
    )

    @property
    def first_day(self) -> int:
        """Days from 1970 to the start."""
        return (self.start - datetime.date(1970, 1, 1)).days

    def make(self, destination: str) -> dict[str, Any]:
        """Write a made log below `destination` (a folder or s3://...) and return what was made.

        events/part-*.parquet and items/items.parquet are the log; truth/ holds what is hidden from it (see
        docs/simulation.md). A log that was made here before is replaced. Returns paths and counts (users, items,
        events, bytes, seconds). Raises `InputError` where `destination` holds events that were not made here.
        """
        begun = time.monotonic()
        _clear(destination)
        _write_rule(self, destination)
        sizes = _write_items(self, destination)
        events = 0
        with storage.open_file(storage.join(destination, "truth", "users.parquet"), "wb") as file:
            writer: pq.ParquetWriter | None = None
            for made in _progress(self, _blocks(self, destination)):
                events += made.events
                sizes += made.bytes
                writer = writer or pq.ParquetWriter(file, made.users.schema, compression="zstd")
                writer.write_table(made.users)
            assert writer is not None
            writer.close()
        return {
            "events_path": storage.join(destination, self.events_path),
            "items_path": storage.join(destination, self.items_path),
            "truth_path": storage.join(destination, "truth"),
            "users": self.users,
            "items": self.items,
            "events": events,
            "bytes": sizes,
            "seconds": round(time.monotonic() - begun, 3),
        }


@dataclass(frozen=True)
class Made:
    """What came of one block."""

    events: int
    bytes: int
    users: pa.Table


def _blocks(config: SimulateConfig, destination: str) -> Iterator[Made]:
    blocks = range(-(-config.users // BLOCK_USERS))
    processes = min(len(blocks), config.processes or len(os.sched_getaffinity(0)))
    if processes == 1:
        yield from (_write_block(config, destination, block) for block in blocks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(_write_block, [config] * len(blocks), [destination] * len(blocks), blocks)
        finally:
            pool.shutdown(cancel_futures=True)


def _progress(config: SimulateConfig, blocks: Iterator[Made]) -> Iterator[Made]:
    with tqdm(total=config.users, desc="simulate", unit="user", delay=1) as bar:
        for made in blocks:
            bar.update(made.users.num_rows)
            yield made


def _clear(destination: str) -> None:
    made_here = storage.exists(storage.join(destination, "truth", "rule.json"))
    for folder in ("events", "items", "truth"):
        path = storage.join(destination, folder)
        if not made_here and storage.exists(path):
            raise InputError(f"{path}: is there and was not made by simulate; takes a destination without it")
        if folder != "truth":
            storage.remove(path)
    truth = storage.join(destination, "truth")
    for name in storage.list_names(truth):
        if name != "rule.json":  # which tells that the log was made here, and is written anew
            storage.remove(storage.join(truth, name))


def make_world(config: SimulateConfig) -> tuple[Catalogue, Pools]:
    """The catalogue of `config` and its pools: the same wherever it is called."""
    rng = np.random.default_rng([config.seed, 0])
    catalogue = world_module.make_catalogue(config.catalogue, config.items, config.first_day, config.days, rng)
    return catalogue, Pools(catalogue, config.rule, config.first_day, config.days)


_world = lru_cache(maxsize=1)(make_world)


@dataclass(frozen=True)
class Block:
    """The events of a block's users, by user, then by time; the intents are the hidden ones."""

    users: Users
    timeline: Timeline
    item: Array
    shown_action: Array
    action: Array
    genre: Array
    content_type: Array
    age: Array
    kept: Array
    watch_seconds: Array


def simulate_block(config: SimulateConfig, catalogue: Catalogue, pools: Pools, block: int) -> Block:
    """Draw the users of block `block` and all their events."""
    rng = np.random.default_rng([config.seed, 1 + block])
    count = min(BLOCK_USERS, config.users - block * BLOCK_USERS)
    users = world_module.make_users(config.user, count, rng)
    timeline = world_module.make_timeline(config.user, users, config.days, rng)
    drawn = _draw_events(config, pools, users, timeline, rng)
    watch_seconds_E = _watch_seconds(catalogue, users, timeline, drawn["item"], drawn["genre"], rng)
    return Block(users=users, timeline=timeline, watch_seconds=watch_seconds_E, **drawn)


def _draw_events(
    config: SimulateConfig, pools: Pools, users: Users, timeline: Timeline, rng: Generator
) -> dict[str, Array]:
    """Intents and items, in lock step: the users with the most events first, so that those who go on are a slice."""
    rank_U = np.empty(len(timeline.events), np.int64)
    rank_U[np.argsort(-timeline.events, kind="stable")] = np.arange(len(rank_U))
    step_E = np.arange(len(timeline.user)) - timeline.first[timeline.user]
    order_E = np.lexsort((rank_U[timeline.user], step_E))
    ends = np.cumsum(np.bincount(step_E))

    user_E, part_E = timeline.user[order_E], timeline.part[order_E]
    kept_E = _kept(config.rule, timeline, rng)[order_E]
    pick_E, follow_E, choose_E = rng.random((3, len(order_E)))
    taste_E = world_module.choose(users.taste[user_E], rng.random(len(order_E)))
    kids_genre_E = rng.choice(len(rule_module.KIDS_GENRES), len(order_E), p=rule_module.KIDS_GENRES)
    new_type_E = (rng.random(len(order_E)) < users.series_share[user_E]).astype(np.int64)
    new_age_E = world_module.choose(users.ages[user_E], rng.random(len(order_E)))
    day_E = config.first_day + timeline.day[order_E]

    memory = Memory(pools.catalogue, config.rule, len(rank_U))
    last, action, genre, content_type, age = np.full((5, len(rank_U)), -1)
    columns = ("item", "shown_action", "action", "genre", "content_type", "age")
    out = {name: np.empty(len(order_E), np.int64) for name in columns}
    for begin, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        here, active = slice(begin, end), slice(end - begin)
        kept = kept_E[here]
        weights = rule_module.action_weights(users.actions[user_E[here]], part_E[here], action[active])
        action = np.where(kept, action[active], world_module.choose(weights, choose_E[here]))
        new_genre = np.where(action == KIDS, kids_genre_E[here], taste_E[here])
        genre = np.where(kept, genre[active], new_genre)
        content_type = np.where(kept, content_type[active], new_type_E[here])
        age = np.where(kept, age[active], new_age_E[here])
        states = States(
            action,
            genre,
            content_type,
            age,
            kept,
            day_E[here],
            last[active],
            memory.begun[active],
            memory.films[active],
        )
        last, shown = rule_module.draw_items(pools, states, follow_E[here], pick_E[here])
        memory.watch(last)
        for column, values in zip(columns, (last, shown, action, genre, content_type, age), strict=True):
            out[column][here] = values
    back_E = np.argsort(order_E)
    return {name: values[back_E] for name, values in (out | {"kept": kept_E}).items()}


def _kept(rule: Rule, timeline: Timeline, rng: Generator) -> Array:
    """Whether (E,) an event keeps the intent of the event before; a user's first never does."""
    gap_days_E = np.diff(timeline.second, prepend=0.0) / 86_400
    gap_days_E[timeline.first] = np.inf
    keep_E = rule_module.keep_probability(rule, timeline.new_session, gap_days_E)
    kept: Array = rng.random(len(keep_E)) < keep_E
    return kept


def _watch_seconds(
    catalogue: Catalogue, users: Users, timeline: Timeline, item_E: Array, genre_E: Array, rng: Generator
) -> Array:
    """Seconds (E,) watched: a share of the free time, the larger the better the item fits taste and intent."""
    rows = np.arange(len(item_E))
    genres_EG = catalogue.genres[item_E]
    fit_E = 0.5 * genres_EG[rows, genre_E] + 0.5 * np.minimum(
        1.0, 2 * (genres_EG * users.taste[timeline.user]).sum(axis=1)
    )
    share_E = 0.2 + 0.7 * fit_E
    watched: Array = timeline.free_seconds * rng.beta(6 * share_E, 6 * (1 - share_E))
    return watched


def _write_block(config: SimulateConfig, destination: str, block: int) -> Made:
    catalogue, pools = _world(config)
    made = simulate_block(config, catalogue, pools, block)
    timeline = made.timeline
    user_id_E = 1 + block * BLOCK_USERS + timeline.user
    milliseconds_E = config.first_day * 86_400_000 + (timeline.second * 1000).astype(np.int64)
    events = pa.table(
        {
            "user_id": user_id_E,
            "session_id": user_id_E * SESSIONS_A_USER + timeline.session,
            "item_id": made.item + 1,
            "timestamp": pa.array(milliseconds_E, pa.timestamp("ms")),
            "action": _labels(made.shown_action, ACTIONS),
            "device": _labels(timeline.device, DEVICES),
            "watch_seconds": made.watch_seconds.astype(np.float32),
        }
    )
    intents = pa.table(
        {
            "action": _labels(made.action, ACTIONS),
            "genre": _labels(made.genre, GENRES),
            "content_type": _labels(made.content_type, CONTENT_TYPES),
            "age": _labels(made.age, AGES),
            "kept": made.kept,
        }
    )
    part = f"part-{block:05d}.parquet"
    size = _write(events, storage.join(destination, "events", part))
    _write(intents, storage.join(destination, "truth", "intents", part))
    return Made(events.num_rows, size, _users_table(made.users, 1 + block * BLOCK_USERS))


def _users_table(users: Users, first_id: int) -> pa.Table:
    return pa.table(
        {
            "user_id": np.arange(first_id, first_id + len(users.sessions)),
            "sessions": users.sessions,
            "series_share": users.series_share,
            "taste": _rows(users.taste),
            "actions": _rows(users.actions),
            "ages": _rows(users.ages),
            "devices": _rows(users.devices),
            "parts_of_day": _rows(users.parts),
        }
    )


def _write_items(config: SimulateConfig, destination: str) -> int:
    """Write the items and their hidden side; returns the bytes of the former."""
    catalogue, _ = _world(config)
    item, genre = np.nonzero(catalogue.genres)
    offsets = np.searchsorted(item, np.arange(config.items + 1)).astype(np.int32)
    item_id = np.arange(1, config.items + 1)
    items = pa.table(
        {
            "item_id": item_id,
            "title": world_module.make_titles(config.items),
            "genres": pa.ListArray.from_arrays(pa.array(offsets), _labels(genre, GENRES).cast(pa.string())),
            "content_type": _labels(catalogue.content_type, CONTENT_TYPES).cast(pa.string()),
            "release_date": pa.array(catalogue.release_day.astype(np.int32)).cast(pa.date32()),
        }
    )
    hidden = pa.table(
        {
            "item_id": item_id,
            "popularity": catalogue.weight,
            "franchise": catalogue.franchise,
            "episodes": catalogue.episodes,
        }
    )
    _write(hidden, storage.join(destination, "truth", "items.parquet"))
    return _write(items, storage.join(destination, "items", "items.parquet"))


def rule_tables() -> dict[str, Any]:
    """Names and factors of the rule, which are the same for every log; as JSON has them."""
    return {
        "actions": ACTIONS,
        "genres": GENRES,
        "content_types": CONTENT_TYPES,
        "ages": AGES,
        "new_days": rule_module.NEW_DAYS,
        "recent_days": rule_module.RECENT_DAYS,
        "parts_of_day": rule_module.PARTS_OF_DAY,
        "devices": DEVICES,
        "kids_genres": rule_module.KIDS_GENRES,
        "action_part_factors": rule_module.PART_FACTORS.tolist(),
        "action_transitions": rule_module.ACTION_TRANSITIONS.tolist(),
        "device_part_factors": world_module.DEVICE_FACTORS.tolist(),
    }


def _write_rule(config: SimulateConfig, destination: str) -> None:
    rule = {"config": config.model_dump(mode="json", exclude={"kind", "processes"}), **rule_tables()}
    storage.write_text(storage.join(destination, "truth", "rule.json"), json.dumps(rule, indent=2) + "\n")


def _labels(index: Array, names: tuple[str, ...]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int8)), pa.array(names))


def _rows(values: Array) -> pa.ListArray:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def _write(table: pa.Table, url: str) -> int:
    with storage.open_file(url, "wb") as file:
        pq.write_table(table, file, compression="zstd")
        return int(file.tell())
