"""Preparing: events and items become vocabularies, a split, shards of per-user sequences and a manifest.

One machine; memory holds the declared columns of the log. The manifest is written last: a folder without one
is not complete and is prepared anew, one whose manifest has the input's fingerprint is left as it is.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ingest.errors import InputError
from ingest.item_table import build_items
from ingest.manifest import Manifest, Shard, SplitName, load_manifest, save_manifest
from ingest.raw import event_features, read_events, read_items
from ingest.schema import FIRST_VALUE, UNKNOWN, DataConfig
from ingest.shard_writer import encoded_log, write_shards, write_table
from ingest.split import SplitLog, split_log, targets_where
from ingest.storage import exists, join, list_files, open_filesystem, remove
from ingest.vocabulary import FittedFeature, Vocabulary, build_vocabulary, fit

ALGORITHM = 2
"""Part of the fingerprint: raised when the same input gives other prepared data than before."""
CONTENT = ("manifest.json", "items.parquet", "vocab", "train", "validation", "test", "rest")
Log = Callable[[str], None]


def prepare(config: DataConfig, destination: str, log: Log = print) -> Manifest:
    """Prepare the log of `config` in the folder `destination`, unless it is there already."""
    if config.events is None:
        raise InputError("data.events is missing: name the log, a Parquet file or a folder of them")
    event_files = list_files(config.events, ".parquet")
    item_files = list_files(config.items, ".parquet") if config.items else []
    mark = fingerprint(config, event_files + item_files)
    done = _prepared_already(destination, mark)
    if done is not None:
        log(f"{destination}: prepared already, nothing to do")
        return done
    _refuse_overlap(destination, event_files + item_files)

    log(f"reading {len(event_files)} files of events from {config.events}")
    events = read_events(config, event_files)
    items = None
    if item_files:
        log(f"reading {len(item_files)} files of items from {config.items}")
        items = read_items(config, item_files, events.schema["item"])
    prepared = _Preparation(config, destination, log, {})
    return prepared.run(events, items, mark)


@dataclass
class _Preparation:
    config: DataConfig
    destination: str
    log: Log
    counts: dict[str, int]

    def run(self, events: pl.DataFrame, items: pl.DataFrame | None, mark: str) -> Manifest:
        config, counts = self.config, self.counts
        events = self._until(events)
        last_time = int(events["time"].max())  # type: ignore[arg-type]
        self._count_unknown_items(events, items)
        events = self._sort(self._drop(events))
        runs = events["user"].rle().struct.unnest()
        users, lengths = runs["value"], runs["len"].to_numpy().astype(np.int64)
        events = events.drop("user")
        counts |= {"users": len(users), "events": events.height}
        self.log(f"splitting {events.height:,} events of {len(users):,} users: {config.split.kind}")
        split = split_log(config.split, events["time"].to_numpy(), lengths, last_time)

        self.log("building vocabularies from the training events")
        training = events.filter(pl.Series(split.training))
        item_vocabulary = build_vocabulary(training["item"], config.min_item_count)
        counts["items"] = item_vocabulary.size - FIRST_VALUE
        counts["items_below_min_count"] = training["item"].n_unique() - counts["items"]
        training = training.with_columns(item_vocabulary.encode(training["item"]).alias("item"))
        fitted = {feature.name: fit(feature, training[feature.name]) for feature in event_features(config)}
        item_table, fitted_items = build_items(config, item_vocabulary, items, training)
        fitted |= fitted_items
        encoded = self._encode(events, item_vocabulary, fitted)
        self._count(split, item_vocabulary, training, encoded["item"].to_numpy(), len(users))

        described = self._describe(training, item_vocabulary, fitted)

        for name in CONTENT:
            remove(join(self.destination, name))
        self._write_vocabularies(item_vocabulary, fitted, item_table)
        manifest = Manifest(
            fingerprint=mark, counts=counts, shards=self._write_shards(split, users, encoded), **described
        )
        save_manifest(manifest, self.destination)
        self.log(f"{self.destination}: {summary(counts)}")
        return manifest

    def _until(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events before `data.until`; the others are counted."""
        end = self.config.until
        if end is None:
            return events
        end = end.replace(tzinfo=end.tzinfo or datetime.UTC)
        kept = events.filter(pl.col("time") < round(end.timestamp() * 1000))
        self.counts["events_left_out_by_until"] = events.height - kept.height
        if kept.is_empty():
            raise InputError(f"{self.config.events}: no event is before data.until {end.isoformat()}")
        return kept

    def _describe(
        self, training: pl.DataFrame, item_vocabulary: Vocabulary, fitted: dict[str, FittedFeature]
    ) -> dict[str, Any]:
        """What the manifest says of the training data."""
        config = self.config
        mean_duration = 1.0
        if config.duration is not None:
            mean_duration = float(training["duration"].to_numpy().mean())
            if mean_duration == 0:
                raise InputError(f"{config.events}: column {config.duration!r} is 0 in every training event")
        return {
            "items": item_vocabulary.size,
            "features": [fitted[feature.name].prepared for feature in config.features],
            "time_unit": "position" if config.time_unit == "position" else "time",
            "first_time": training["time"].min(),
            "last_time": training["time"].max(),
            "has_duration": config.duration is not None,
            "mean_duration": mean_duration,
            "split": config.split.model_dump(),
        }

    def _count_unknown_items(self, events: pl.DataFrame, items: pl.DataFrame | None) -> None:
        self.counts["unknown_item_events"] = 0
        if items is None:
            return
        unknown = events.select("item").join(items.select("item"), on="item", how="anti", maintain_order="left")
        self.counts["unknown_item_events"] = unknown.height
        if unknown.height and self.config.unknown_items == "error":
            raise InputError(
                f"{self.config.events}: column {self.config.item!r}: the item table {self.config.items} lacks item "
                f"{unknown['item'][0]!r} ({unknown.height} events, {unknown['item'].n_unique()} items are unknown to "
                "it); data.unknown_items: keep lets them in without attributes"
            )

    def _drop(self, events: pl.DataFrame) -> pl.DataFrame:
        config, counts = self.config, self.counts
        unique = events.unique(keep="first", maintain_order=True)
        counts["duplicates"] = events.height - unique.height
        if config.duplicates == "drop":
            events = unique
        per_user = events.group_by("user").len()
        rare = per_user.filter(pl.col("len") < config.min_user_events)
        counts |= {"dropped_users": rare.height, "dropped_events": int(rare["len"].sum())}
        if rare.height == per_user.height:
            raise InputError(f"{config.events}: no user has {config.min_user_events} events (data.min_user_events)")
        return events.join(rare, on="user", how="anti", maintain_order="left") if rare.height else events

    def _sort(self, events: pl.DataFrame) -> pl.DataFrame:
        self.log(f"sorting {events.height:,} events by user and time")
        return events.sort("user", "time", maintain_order=True)

    def _encode(
        self, events: pl.DataFrame, item_vocabulary: Vocabulary, fitted: dict[str, FittedFeature]
    ) -> pl.DataFrame:
        columns = [item_vocabulary.encode(events["item"]).alias("item"), events["time"]]
        if self.config.duration:
            columns.append(events["duration"].cast(pl.Float32))
        for feature in event_features(self.config):
            columns.append(fitted[feature.name].encode(events[feature.name]).alias(feature.name))
        return pl.DataFrame(columns)

    def _count(
        self, split: SplitLog, item_vocabulary: Vocabulary, training: pl.DataFrame, item_index: np.ndarray, users: int
    ) -> None:
        counts = self.counts
        counts["training_events"] = training.height
        counts["unknown_training_events"] = int(item_vocabulary.table["count"][UNKNOWN])
        for name, without_target in split.without_target.items():
            rows = split.rows[name]
            counts[f"{name}_rows"] = len(rows)
            counts[f"{name}_targets"] = int(rows.targets.sum())
            counts[f"{name}_users_without_target"] = without_target
            counts[f"unknown_targets_{name}"] = targets_where(rows, item_index == UNKNOWN)
        counts["rest_rows"] = len(split.rows["rest"])
        in_a_row = np.unique(np.concatenate([split.rows[name].user for name in split.without_target]))
        counts["users_without_target"] = users - len(in_a_row)

    def _write_vocabularies(
        self, item_vocabulary: Vocabulary, fitted: dict[str, FittedFeature], item_table: pl.DataFrame
    ) -> None:
        self.log(f"writing vocabularies: {item_vocabulary.size - FIRST_VALUE:,} items")
        write_table(join(self.destination, "vocab/item.parquet"), item_vocabulary.table)
        for name, feature in fitted.items():
            if feature.vocabulary is not None:
                write_table(join(self.destination, f"vocab/{name}.parquet"), feature.vocabulary.named())
        write_table(join(self.destination, "items.parquet"), item_table)

    def _write_shards(self, split: SplitLog, users: pl.Series, encoded: pl.DataFrame) -> dict[SplitName, list[Shard]]:
        encoded_events = encoded_log(users, encoded)
        shards: dict[SplitName, list[Shard]] = {}
        for name, rows in split.rows.items():
            self.log(f"writing {name}: {len(rows):,} users, {int(rows.targets.sum()):,} targets")
            shards[name] = write_shards(
                self.destination,
                name,
                rows,
                encoded_events,
                self.config.row_group_interactions,
                self.config.shard_interactions,
            )
        return shards


def summary(counts: dict[str, int]) -> str:
    """The counts as a sentence: the main ones, and of all that was dropped or is unknown what is not 0."""
    main = ("users", "events", "items")
    others = [name for name, count in counts.items() if count and name not in main and not name.endswith("_rows")]
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in (*main, *others))


def fingerprint(config: DataConfig, files: list[str]) -> str:
    """Of the config's data section and the input files' names, sizes and times of change (or ETags)."""
    described = []
    for url in files:
        filesystem, path = open_filesystem(url)
        info = filesystem.info(path)
        changed = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created")
        described.append([url, info["size"], str(changed)])
    content = json.dumps([ALGORITHM, config.model_dump(mode="json"), described], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _prepared_already(destination: str, mark: str) -> Manifest | None:
    if not exists(join(destination, "manifest.json")):
        return None
    try:
        manifest = load_manifest(destination)
    except InputError:  # of another version, or damaged
        return None
    return manifest if manifest.fingerprint == mark else None


def _refuse_overlap(destination: str, files: list[str]) -> None:
    """The input must not lie where older prepared content is removed."""
    for url in files:
        for name in CONTENT:
            _, ours = open_filesystem(join(destination, name))
            _, path = open_filesystem(url)
            if path == ours or path.startswith(f"{ours}/"):
                raise InputError(f"{url}: lies where prepared data are written; prepare into another folder")
