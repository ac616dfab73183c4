"""manifest.json of a prepared data set: what is in it, how it was split, and each shard's rows and checksum.

    manifest.json             this file; written last, so a data set without one is not complete
    vocab/<feature>.parquet   value (string), index, count; `vocab/item.parquet` keeps the log's own item ids
    items.parquet             one row an item index, 0 and 1 included: attributes as the model sees them
    train/ validation/ test/  part-00000.parquet ...: one row a user, oldest event first
    transitions/              part-00000.parquet ...: which item follows which (`ingest.data.transitions`)
    activity/                 part-00000.parquet ...: when each item was taken (`ingest.data.activity`); logs with times
    activity_by/<feature>/    the same by the values of a feature that is known at the request
    successions/              part-00000.parquet ...: which followed which, and when (`ingest.data.successions`)
    rest/                     the same for users without a row of test: their whole history, and nothing to predict

Shard columns: `user` (the log's own id), `targets` (int32: how many of the row's last events are to be predicted),
`item` (list<int32>), `time` (list<int64>: milliseconds since 1970, or positions), `duration` (list<float32>, only if
declared) and one list for each event feature: int32 indices, float32 standardised numbers, list<int32> for
`categories`. Columns of items.parquet: `index`, `id`, `count` (training events), `exists`, `title` (if declared) and
one for each item feature: int32 index, list<int32> indices, float32 number, or int64 milliseconds (null where unknown)
for `elapsed`. `exists` is int64 milliseconds since 1970: the first event of an item that the item table lacks; null for
those that it has, which exist always, and in a log of positions.

An item's index: 0 padding, 1 unknown; then, to before `items`, those that training knows, by their count there; then,
to before `catalogue`, all others that the log or the item table has, by their count there too, which is below
data.min_item_count.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from ingest.arrays.jagged import Integers
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE, PreparedFeature, is_attribute
from ingest.settings import Record, sentence
from ingest.storage import exists, join, read_text, write_text

VERSION = 4
VERSION_KEY = b"intentrec.version"
"""In the metadata of every shard's schema."""
SplitName = Literal["train", "validation", "test", "rest"]


class Shard(Record):
    path: str
    """Relative to the manifest."""
    bytes: int
    checksum: str
    """SHA-256 of the file, hexadecimal. Pages carry a CRC of their own, which every read checks."""
    row_groups: list[tuple[int, int]]
    """Rows and interactions of each row group."""

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.row_groups)

    @property
    def interactions(self) -> int:
        return sum(interactions for _, interactions in self.row_groups)


class Manifest(Record):
    version: int = VERSION
    items: int
    """Rows of the embedding table of items: those that training knows, padding and unknown included."""
    catalogue: int
    """Rows of items.parquet: the same and all other items behind them."""
    features: list[PreparedFeature]
    time_unit: Literal["time", "position"]
    first_time: int
    last_time: int
    """Of the training data, in the unit of the shards' `time`."""
    newest_time: int | None = None
    """Of the whole log; None in what was prepared before it was kept."""
    has_duration: bool
    mean_duration: float = 1.0
    split: dict[str, Any]
    begins: dict[SplitName, int] = {}
    """From when on events are of validation and of test, where the split is a point in time."""
    counts: dict[str, int]
    """users, items, events and what was dropped or is unknown, by name."""
    warnings: list[str] = []
    """What the log or the config has that makes a result suspicious, a sentence each."""
    majority: dict[str, int] = {}
    """The known label that is most common among the training targets, by intent; one whose labels are all unknown has
    none."""
    fingerprint: str
    """Of the config's data section and the input files: the same means that nothing has to be prepared again."""
    shards: dict[SplitName, list[Shard]]

    @property
    def end(self) -> int:
        """The time of the log's last event, or of the training data's where the former was not kept."""
        return self.last_time if self.newest_time is None else self.newest_time

    def feature(self, name: str) -> PreparedFeature:
        return next(feature for feature in self.features if feature.name == name)

    def frozen_until(self, time_Q: Integers) -> Integers | None:
        """Up to when a service knows the log that has stopped to count where the split begins that a request is of.

        None where splits are no points in time: then it knows the training data.
        """
        if not self.begins:
            return None
        begins = np.array(sorted(self.begins.values()))
        return np.minimum(begins[np.maximum(np.searchsorted(begins, time_Q, side="right") - 1, 0)], time_Q)

    @property
    def intents(self) -> list[PreparedFeature]:
        return [feature for feature in self.features if feature.intent]

    @property
    def labels(self) -> dict[str, int]:
        """How many labels each intent has: label l is vocabulary index l + 2."""
        return {feature.name: feature.size - FIRST_VALUE for feature in self.intents}

    @property
    def attributes(self) -> list[PreparedFeature]:
        """The features that tell an item from others whenever it is asked for."""
        return [feature for feature in self.features if is_attribute(feature)]


def load_manifest(url: str) -> Manifest:
    """The manifest of the prepared data set in the folder `url`; `InputError` where there is none of our version."""
    path = join(url, "manifest.json")
    if not exists(path):
        raise InputError(f"{path}: no such file; `intentrec prepare` writes it")
    text = read_text(path)
    version: Any
    try:
        manifest = Manifest.model_validate_json(text)
        version, damage = manifest.version, ""
    except ValidationError as error:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as malformed:
            raise InputError(f"{path}: not valid JSON: {malformed}") from None
        version = content.get("version") if isinstance(content, dict) else None
        damage = sentence(error, content, f"{path}: damaged")
    if version != VERSION:
        raise InputError(
            f"{path}: version {version!r}; this release reads version {VERSION}, so prepare the data again"
        )
    if damage:
        raise InputError(damage)
    return manifest


def save_manifest(manifest: Manifest, url: str) -> None:
    write_text(join(url, "manifest.json"), manifest.model_dump_json(indent=1) + "\n")
