"""The split: which prefix of each user's events is a row of training, validation and test, and its targets.

A row is always a prefix of the user's events, oldest first, and its targets are its last ones. So a split is
three numbers a user: where training, validation and the whole history end. A row of test is the user's whole history;
users without one have it in `rest`, with no target: test and rest together hold every user once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.arrays.jagged import Integers, offsets_of
from ingest.data.manifest import SplitName
from ingest.data.schema import Split
from ingest.durations import parse_duration


@dataclass(frozen=True)
class Rows:
    """Rows of one split, users ascending: events `start` to `start + length`, the last `targets` to be predicted."""

    user: Integers
    """Positions in the list of users."""
    start: Integers
    length: Integers
    targets: Integers

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class SplitLog:
    rows: dict[SplitName, Rows]
    without_target: dict[SplitName, int]
    """Users who have events in the split's part of the log but nothing to predict there: left out."""
    training: NDArray[np.bool_]
    """For each event, whether it belongs to training."""


def split_log(split: Split, times: Integers, lengths: Integers, last_time: int) -> SplitLog:
    """Split events that are sorted by user and time; `lengths` has each user's number of events."""
    starts = np.cumsum(lengths) - lengths
    if split.kind == "leave_one_out":
        held_out = lengths >= 3
        train_end, validation_end = np.where(held_out, lengths - 2, lengths), np.where(held_out, lengths - 1, lengths)
        end = lengths
    else:
        begins = begins_of(split, last_time)
        train_end = np.add.reduceat((times < begins["validation"]).astype(np.int64), starts)
        validation_end = np.add.reduceat((times < begins["test"]).astype(np.int64), starts)
        end = lengths
    rows: dict[SplitName, Rows] = {}
    without_target: dict[SplitName, int] = {}
    ends: list[tuple[SplitName, Integers, Integers]] = [
        ("train", np.zeros_like(lengths), train_end),
        ("validation", train_end, validation_end),
        ("test", validation_end, end),
    ]
    for name, before, after in ends:
        targets = np.minimum(after - before, after - 1)
        user = np.flatnonzero(targets > 0)
        rows[name] = Rows(user, starts[user], after[user], targets[user])
        without_target[name] = int(((after > before) & (targets <= 0)).sum())
    rest = np.setdiff1d(np.arange(len(lengths)), rows["test"].user, assume_unique=True)
    rows["rest"] = Rows(rest, starts[rest], lengths[rest], np.zeros_like(rest))
    position = np.arange(len(times)) - np.repeat(starts, lengths)
    return SplitLog(rows, without_target, position < np.repeat(train_end, lengths))


def begins_of(split: Split, last_time: int) -> dict[SplitName, int]:
    """From when on events are of validation and of test, where the split is a point in time."""
    if split.kind == "leave_one_out":
        return {}
    test = last_time - parse_duration(split.test or 0) + 1
    return {"validation": test - parse_duration(split.validation or 0), "test": test}


def targets_where(rows: Rows, marked: NDArray[np.bool_]) -> int:
    """How many targets of `rows` are events that are `marked`."""
    before = offsets_of(marked)
    end = rows.start + rows.length
    return int((before[end] - before[end - rows.targets]).sum())
