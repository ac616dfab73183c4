"""The baselines in dicts and loops: for each target, what every item is sorted by, the best highest."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from ingest.data.activity import BUCKET
from ingest.data.manifest import SplitName
from ingest.durations import parse_duration
from tests.evaluation.events import events_of, histories_of
from tests.small import Data

Keys = dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class Target:
    history: list[int]
    item: int
    time: int
    row: dict[str, list[int]]
    """The whole row that it is in."""


@dataclass(frozen=True)
class Log:
    data: Data
    split: SplitName = "test"

    @cached_property
    def counted(self) -> tuple[Counter[int], Counter[tuple[int, int]]]:
        """Items and pairs of items that follow each other in training: its rows, and users with a single event."""
        items: Counter[int] = Counter()
        pairs: Counter[tuple[int, int]] = Counter()
        for split in ("train", "rest"):
            for shard in self.data.manifest.shards[split]:
                for row in pq.read_table(Path(self.data.url) / shard.path, columns=["item"])["item"].to_pylist():
                    if split == "train" or len(row) == 1:
                        items.update(row)
                        pairs.update(itertools.pairwise(row))
        return items, pairs

    @cached_property
    def popularity(self) -> Counter[int]:
        return Counter({item: int(count) for item, count in enumerate(self.data.items.counts)})

    @cached_property
    def rows(self) -> list[list[int]]:
        """Training rows, those with the newest last event first."""
        rows = []
        for shard in self.data.manifest.shards["train"]:
            rows += pq.read_table(Path(self.data.url) / shard.path, columns=["item", "time"]).to_pylist()
        return [row["item"] for row in sorted(rows, key=lambda row: -row["time"][-1])]

    @cached_property
    def users(self) -> dict[int, Counter[int]]:
        """The rows that have each item, and how often."""
        found: dict[int, Counter[int]] = defaultdict(Counter)
        for row, items in enumerate(self.rows):
            for item in items:
                found[item][row] += 1
        return found

    @cached_property
    def items(self) -> range:
        return range(2, self.data.manifest.catalogue)

    @cached_property
    def targets(self) -> dict[tuple[object, int], Target]:
        """By user and place."""
        found = {}
        for shard in self.data.manifest.shards[self.split]:
            for row in pq.read_table(Path(self.data.url) / shard.path).to_pylist():
                for place in range(len(row["item"]) - row["targets"], len(row["item"])):
                    found[row["user"], place] = Target(row["item"][:place], row["item"][place], row["time"][place], row)
        return found


def rank(keys: Keys, item: int) -> int:
    """The place of an item, ties counted against it; 0 where it is not in the catalogue."""
    return sum(other >= keys[item] for other in keys.values()) if item in keys else 0


def newest(history: list[int], length: int) -> list[int]:
    """The different known items, newest first."""
    return [item for item in dict.fromkeys(reversed(history)) if item > 1][:length]


def recent(log: Log, order: str, half_life: float = 8.0, length: int = 50) -> Callable[[Target], Keys]:
    def keys(target: Target) -> Keys:
        back: dict[int, list[int]] = defaultdict(list)
        for place, item in enumerate(reversed(target.history)):
            back[item].append(place)
        found: Keys = {item: (0, log.popularity[item]) for item in log.items}
        for item in newest(target.history, length):
            score = {
                "recency": -min(back[item]),
                "frequency": len(back[item]),
                "decay": sum(0.5 ** (place / half_life) for place in back[item]),
            }[order]
            found[item] = (1, round(score, 9), -min(back[item]))
        return found

    return keys


def returns(log: Log, by: str | None, length: int = 50) -> Callable[[Target], Keys]:
    seen: Counter[tuple[int, int]] = Counter()
    taken: Counter[tuple[int, int]] = Counter()

    def own(row: dict[str, list[int]], place: int) -> dict[int, tuple[int, int]]:
        """How each of the newest items is told apart: the value at its newest interaction, how many items ago."""
        found: dict[int, tuple[int, int]] = {}
        for item, value in zip(reversed(row["item"][:place]), reversed(row[by or "item"][:place]), strict=True):
            if item > 1 and item not in found and len(found) < length:
                found[item] = (value if by else 0, len(found))
        return found

    for shard in log.data.manifest.shards["train"]:
        for row in pq.read_table(Path(log.data.url) / shard.path).to_pylist():
            for place in range(len(row["item"]) - row["targets"], len(row["item"])):
                for item, kind in own(row, place).items():
                    seen[kind] += 1
                    taken[kind] += item == row["item"][place]

    def rate(kind: tuple[int, int]) -> float:
        alike = [other for other in seen if other[1] == kind[1]]
        mean = (sum(taken[other] for other in alike) + 1) / (sum(seen[other] for other in alike) + length)
        return (taken[kind] + mean) / (seen[kind] + 1)

    def keys(target: Target) -> Keys:
        found: Keys = {item: (0, log.popularity[item]) for item in log.items}
        for item, kind in own(target.row, len(target.history)).items():
            found[item] = (1, rate(kind), -kind[1])
        return found

    return keys


def known_before(log: Log, live: bool) -> int | None:
    """From when on nothing is known, in all targets' stead; None where that is each target's time.

    Frozen, it is where the split begins, which is one millisecond after the time of the config.
    """
    if live:
        return None
    split = log.data.manifest.split
    last = max(time for _, time, _ in events_of(log.data.url))
    spans = {"test": ["test"], "validation": ["validation", "test"]}[log.split]
    return last - sum(parse_duration(split[span]) for span in spans) + 1


def trending(log: Log, span: str, live: bool, by: str | None = None) -> Callable[[Target], Keys]:
    events = [(item, time, True, 0) for item, time, _ in events_of(log.data.url)]
    before = known_before(log, live)
    if by is not None:
        events = []
        for split in ("test", "rest"):
            for shard in log.data.manifest.shards[split]:  # type: ignore[index]
                for row in pq.read_table(Path(log.data.url) / shard.path).to_pylist():
                    events += [
                        (*event, True, value) for *event, value in zip(row["item"], row["time"], row[by], strict=True)
                    ]
    buckets = parse_duration(span) // BUCKET

    def keys(target: Target) -> Keys:
        end = (target.time if before is None else before) // BUCKET
        wanted = target.row[by][len(target.history)] if by else 0
        counts = Counter(
            item
            for item, time, counted, value in events
            if counted and end - buckets <= time // BUCKET < end and value == wanted
        )
        return {item: (counts[item], log.popularity[item]) for item in log.items}

    return keys


def followed(
    log: Log, span: str, live: bool, half_life: str, weight: float, length: int, by: str | None = None
) -> Callable[[Target], Keys]:
    pairs = [
        (before, time, after)
        for row in histories_of(log.data.url)
        for (before, _, _), (after, time, _) in itertools.pairwise(row)
    ]
    lately, until = trending(log, span, live, by), known_before(log, live)

    def keys(target: Target) -> Keys:
        now = target.time if until is None else until
        newest_first = sorted(
            ((time, after) for before, time, after in pairs if before == target.history[-1] and time < now),
            reverse=True,
        )
        counts: dict[int, float] = defaultdict(float)
        for time, after in newest_first[:length]:
            counts[after] += 0.5 ** ((now - time) / parse_duration(half_life))
        share = {item: key[0] + key[1] / (sum(log.popularity.values()) + 1) for item, key in lately(target).items()}
        total = sum(key[0] for key in lately(target).values())
        return {
            item: (
                round(weight * counts[item] / (sum(counts.values()) + 1) + (1 - weight) * share[item] / (total + 1), 9),
            )
            for item in log.items
        }

    return keys


def markov(log: Log, repeats: bool) -> Callable[[Target], Keys]:
    _, pairs = log.counted

    def keys(target: Target) -> Keys:
        last = target.history[-1]
        return {
            item: (repeats or item not in target.history, pairs[last, item] * (last > 1), log.popularity[item])
            for item in log.items
        }

    return keys


def item_knn(
    log: Log, neighbours: int, shrink: float, counted: bool, length: int, decay: float
) -> Callable[[Target], Keys]:
    vectors = {item: {row: n if counted else 1 for row, n in log.users[item].items()} for item in log.items}
    norm = {item: math.sqrt(sum(n * n for n in vector.values())) for item, vector in vectors.items()}
    similar: dict[int, dict[int, float]] = {}
    for item in log.items:
        found = {}
        for other in log.items:
            dot = sum(n * vectors[other].get(row, 0) for row, n in vectors[item].items())
            if dot and other != item:
                found[other] = dot / (norm[item] * norm[other] + shrink)
        kept = sorted(found, key=lambda other: (-found[other], other))[:neighbours]
        similar[item] = {other: found[other] for other in kept}

    def keys(target: Target) -> Keys:
        own = newest(target.history, length)
        found: Keys = {}
        for item in log.items:
            score = sum(decay**place * similar[item].get(other, 0) for place, other in enumerate(own))
            found[item] = (round(score, 9),) if score else (-1, log.popularity[item])
        return found

    return keys


def session_knn(
    log: Log, neighbours: int, sample: int, length: int, weights: str, idf: bool, cosine: bool
) -> Callable[[Target], Keys]:
    def keys(target: Target) -> Keys:
        own = newest(target.history, length)
        weight = {
            item: {"same": 1.0, "linear": (len(own) - place) / len(own), "div": 1 / (place + 1)}[weights]
            * (math.log(len(log.rows) / len(log.users[item])) if idf and log.users[item] else 1.0)
            for place, item in enumerate(own)
        }
        sampled = [row for row, items in enumerate(log.rows) if set(items) & set(own)][:sample]
        similarity = {}
        for row in sampled:
            overlap = 0.0
            for item in own:
                overlap += weight[item] if item in log.rows[row] else 0.0
            different = len({item for item in log.rows[row] if item > 1})
            similarity[row] = overlap / (math.sqrt(different) if cosine else 1.0)
        nearest = sorted(sampled, key=lambda row: (-similarity[row], row))[:neighbours]
        scores = {item: sum(similarity[row] for row in nearest if item in log.rows[row]) for item in log.items}
        return {item: (round(s, 9),) if s else (-1, log.popularity[item]) for item, s in scores.items()}

    return keys


REFERENCES: dict[str, Callable[..., Callable[[Target], Keys]]] = {
    "recent": recent,
    "returns": returns,
    "trending": trending,
    "followed": followed,
    "markov": markov,
    "item_knn": item_knn,
    "session_knn": session_knn,
}
