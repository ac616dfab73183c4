"""Small random logs of every kind of feature, and what prepare is to find in them: plain dicts and loops."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ingest.data.schema import DataConfig

Row = dict[str, Any]
START = 1_600_000_000_000
HOUR = 3_600_000
MOMENT = pa.timestamp("ms")
FEATURES = """
- {name: device, min_count: 2, intent: true}
- {name: action, first_of: {like: liked, click: clicked}, otherwise: seen, intent: true}
- {name: turn, kind: repeat, intent: true}
- {name: words, kind: categories, min_count: 2, intent: true}
- {name: price, kind: number}
- {name: price_bin, kind: number, column: price, bins: 3, intent: true}
- {name: visit, kind: elapsed, column: last_visit, bins: [1h, 10h], bin_labels: [soon, later, late]}
- {name: genres, kind: categories, of: item, min_count: 2}
- {name: shelf, of: item, intent: true}
- {name: length, kind: number, of: item}
- {name: length_bin, kind: number, of: item, column: length, bins: [2, 4.5]}
- {name: age, kind: elapsed, of: item, column: released, bins: [5h, 1d]}
- {name: freshness, kind: elapsed, of: item, since_first_event: true, bins: 3}
"""
EVENT_SCHEMA = {
    "device": pa.string(),
    "liked": pa.bool_(),
    "clicked": pa.int8(),
    "words": pa.list_(pa.string()),
    "price": pa.float64(),
    "last_visit": MOMENT,
    "seconds": pa.float32(),
}
SPLITS: dict[str, Row] = {
    "leave_one_out": {"kind": "leave_one_out"},
    "point_in_time": {"kind": "point_in_time", "validation": "6h", "test": "8h"},
}


def moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).replace(tzinfo=None)


def random_log(seed: int, id_type: str) -> tuple[list[Row], list[Row]]:
    """A log with tied times, missing values, items that the table lacks, and attributes of every kind."""
    rng = random.Random(seed)

    def name(number: int) -> Any:
        return number if id_type == "int" else f"id {number}"

    def some(values: list[Any]) -> Any:
        return rng.choice([*values, None])

    events = [
        {
            "user_id": name(rng.randint(1, 9)),
            "item_id": name(min(int(rng.expovariate(0.2)), 20)),
            "timestamp": START + rng.randint(0, 40) * HOUR,
            "device": some(["tv", "phone", "web"]),
            "liked": some([True, False]),
            "clicked": some([0, 1]),
            "words": some([[], ["a"], ["b", "a", "b"], ["c", None, "a"], [rng.choice("defgh"), rng.choice("xyz")]]),
            "price": some([1.0, 2.5, 2.5, 4.0, 9.0]),
            "last_visit": some([START - 2 * HOUR, START + 10 * HOUR]),
            "seconds": rng.choice([0.0, 1.5, 3.0]),
        }
        for _ in range(rng.randint(90, 140))
    ]
    events += [dict(rng.choice(events)) for _ in range(6)]
    items = [
        {
            "item_id": name(number),
            "name": some([f"title {number}"]),
            "genres": some([[], ["x"], ["y", "x"], ["z", "y"], [f"only {number}"]]),
            "shelf": some([True, False]),
            "length": some([1, 2, 3, 4, 5, 6]),
            "released": some([START - 30 * HOUR, START, START + 10 * HOUR]),
        }
        for number in rng.sample(range(22), 17)
    ]
    return events, items


def write(path: Path, rows: list[Row], types: dict[str, pa.DataType]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {}
    for name, kind in types.items():
        values = [row[name] for row in rows]
        if kind == MOMENT:
            values = [None if value is None else moment(value) for value in values]
        columns[name] = pa.array(values, kind)
    columns["not_declared"] = pa.array([object.__name__] * len(rows))
    pq.write_table(pa.table(columns), path)


def write_log(folder: Path, events: list[Row], items: list[Row], id_type: str) -> None:
    ids = pa.int64() if id_type == "int" else pa.string()
    types = {"user_id": ids, "item_id": ids, "timestamp": MOMENT} | EVENT_SCHEMA
    half = len(events) // 2
    write(folder / "events/a.parquet", events[:half], types)
    write(folder / "events/b.parquet", events[half:], types)
    of_items = {"name": pa.string(), "genres": pa.list_(pa.string()), "shelf": pa.bool_(), "length": pa.int16()}
    write(folder / "items.parquet", items, {"item_id": ids} | of_items | {"released": MOMENT})


def config_for(folder: Path, split: str, **more: Any) -> DataConfig:
    content: Row = {
        "events": str(folder / "events"),
        "items": str(folder / "items.parquet"),
        "duration": "seconds",
        "title": "name",
        "split": SPLITS[split],
        "features": yaml.safe_load(FEATURES),
    }
    return DataConfig.model_validate(content | more)


# --- the reference: plain Python, slow and obvious


def vocabulary(values: list[Any], min_count: int) -> tuple[dict[Any, int], list[tuple[Any, int]]]:
    """value -> index, and the (value, count) pairs by index from 2 on."""
    counts = Counter(value for value in values if value is not None)
    kept = sorted(((v, n) for v, n in counts.items() if n >= min_count), key=lambda pair: (-pair[1], pair[0]))
    return {value: 2 + i for i, (value, _) in enumerate(kept)}, kept


def distinct(values: list[Any] | None) -> list[Any]:
    return list(dict.fromkeys(value for value in values or [] if value is not None))


def label(row: Row) -> str:
    return "like" if row["liked"] else "click" if row["clicked"] else "seen"


def binned(value: float | None, edges: list[float]) -> int:
    return 1 if value is None else 2 + sum(edge <= value for edge in edges)


def equal_bins(values: list[Any], bins: int) -> list[float]:
    known = sorted(value for value in values if value is not None)
    starts = {known[k * len(known) // bins] for k in range(1, bins)}
    return sorted(start for start in starts if start > known[0])


def moments_of(values: list[Any]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))


def split_reference(config: DataConfig, events: list[Row]) -> tuple[list[Row], Row, Row]:
    """Training events, rows of (user, events, targets) by split, and counts."""
    end = max(row["timestamp"] for row in events)
    counts: Row = {"duplicates": len(events) - len({repr(without_flags(row)) for row in events})}
    if config.duplicates == "drop":
        first: dict[str, Row] = {}
        for row in events:
            first.setdefault(repr(without_flags(row)), row)
        events = list(first.values())
    users: dict[Any, list[Row]] = {}
    for row in events:
        users.setdefault(row["user_id"], []).append(row)
    counts["dropped_users"] = sum(len(rows) < config.min_user_events for rows in users.values())
    users = {user: rows for user, rows in users.items() if len(rows) >= config.min_user_events}
    counts |= {"users": len(users), "events": sum(map(len, users.values()))}
    training: list[Row] = []
    splits: Row = {"train": [], "validation": [], "test": []}
    rest = []
    for user in sorted(users):
        rows = sorted(users[user], key=lambda row: row["timestamp"])
        n = len(rows)
        before: list[Any] = []
        for row in rows:
            last, item = before[-1:], row["item_id"]
            row["turn"] = "same" if last == [item] else "again" if item in before else "new"
            before.append(item)
        if config.split.kind == "leave_one_out":
            cuts = (n - 2, n - 1) if n >= 3 else (n, n)
        else:
            limits = end - 14 * HOUR, end - 8 * HOUR
            cuts = tuple(sum(row["timestamp"] <= limit for row in rows) for limit in limits)  # type: ignore[assignment]
        training += rows[: cuts[0]]
        for name, begin, stop in zip(splits, (0, *cuts), (*cuts, n), strict=True):
            targets = min(stop - begin, stop - 1)
            if targets > 0:
                splits[name].append((user, rows[:stop], targets))
        if not splits["test"] or splits["test"][-1][0] != user:
            rest.append((user, rows, 0))
    counts["users_without_target"] = len(users) - len({user for rows in splits.values() for user, _, _ in rows})
    splits["rest"] = rest
    return training, splits, counts


def without_flags(row: Row) -> Row:
    words = distinct(row["words"])
    return {k: v for k, v in row.items() if k not in ("liked", "clicked")} | {"action": label(row), "words": words}


def elapsed(row: Row, since: int | None) -> int | None:
    return None if since is None else row["timestamp"] - since


class Reference:
    """Everything that prepare is to find, computed from rows."""

    def __init__(self, config: DataConfig, events: list[Row], items: list[Row]) -> None:
        self.training, self.splits, self.counts = split_reference(config, events)
        training = self.training
        self.item, self.item_rows = vocabulary([row["item_id"] for row in training], config.min_item_count)
        table = {row["item_id"]: row for row in items}
        nothing = dict.fromkeys(items[0])
        kept = [row for name in ("test", "rest") for _, rows, _ in self.splits[name] for row in rows]
        counts = Counter(row["item_id"] for row in training)
        others = {row["item_id"] for row in kept} | set(table)
        others -= set(self.item)
        self.other_rows = sorted(((v, counts[v]) for v in others), key=lambda pair: (-pair[1], pair[0]))
        self.counts["other_items"] = len(self.other_rows)
        self.index = {value: 2 + i for i, (value, _) in enumerate(self.item_rows + self.other_rows)}
        appeared = {row["item_id"]: row["timestamp"] for row in sorted(kept, key=lambda row: -row["timestamp"])}
        self.exists = [None if value in table else appeared.get(value) for value in self.index]
        self.attributes = [table.get(value, nothing) for value, _ in self.item_rows]
        self.other_attributes = [table.get(value, nothing) for value, _ in self.other_rows]
        self.counts["unknown_item_events"] = sum(row["item_id"] not in table for row in events)
        self.device, self.device_rows = vocabulary([row["device"] for row in training], 2)
        self.action, self.action_rows = vocabulary([label(row) for row in training], 1)
        self.turn, self.turn_rows = vocabulary([row["turn"] for row in training], 1)
        self.words, self.word_rows = vocabulary([w for row in training for w in distinct(row["words"])], 2)
        self.price = moments_of([row["price"] for row in training])
        self.price_edges = equal_bins([row["price"] for row in training], 3)
        self.genre, self.genre_rows = vocabulary([g for row in self.attributes for g in distinct(row["genres"])], 2)
        known_shelves, other_shelves = (
            [None if row["shelf"] is None else str(row["shelf"]).lower() for row in rows]
            for rows in (self.attributes, self.other_attributes)
        )
        self.shelf, self.shelf_rows = vocabulary(known_shelves, 1)
        self.shelves = [self.shelf.get(value, 1) for value in known_shelves + other_shelves]
        known = [row for row in training if row["item_id"] in self.item]
        self.length = moments_of([table.get(row["item_id"], nothing)["length"] for row in known])
        self.first = [min(row["timestamp"] for row in known if row["item_id"] == v) for v, _ in self.item_rows]
        ages = [row["timestamp"] - self.first[self.item[row["item_id"]] - 2] for row in known]
        self.freshness_edges = equal_bins(ages, 3)
        self.first += [appeared.get(value) for value, _ in self.other_rows]

    def event(self, row: Row) -> Row:
        price = row["price"]
        return {
            "item": self.index[row["item_id"]],
            "time": row["timestamp"],
            "duration": row["seconds"],
            "device": self.device.get(row["device"], 1),
            "action": self.action.get(label(row), 1),
            "turn": self.turn.get(row["turn"], 1),
            "words": distinct([self.words.get(word, 1) for word in distinct(row["words"])]),
            "price": np.float32(0 if price is None else (price - self.price[0]) / self.price[1]),
            "price_bin": binned(price, self.price_edges),
            "visit": binned(elapsed(row, row["last_visit"]), [HOUR, 10 * HOUR]),
        }

    def item_columns(self) -> Row:
        attributes = self.attributes + self.other_attributes
        lengths = [row["length"] for row in attributes]
        scaled = [0 if value is None else (value - self.length[0]) / self.length[1] for value in lengths]
        genres = [distinct([self.genre.get(g, 1) for g in distinct(row["genres"])]) for row in attributes]
        rows = self.item_rows + self.other_rows
        return {
            "id": [None, None, *(value for value, _ in rows)],
            "count": [0, 0, *(n for _, n in rows)],
            "exists": [None, None, *self.exists],
            "title": [None, None, *(row["name"] for row in attributes)],
            "genres": [[], [], *genres],
            "shelf": [0, 1, *self.shelves],
            "length": [0, 0, *scaled],
            "length_bin": [0, 1, *(binned(value, [2, 4.5]) for value in lengths)],
            "age": [None, None, *(row["released"] for row in attributes)],
            "freshness": [None, None, *self.first],
        }
