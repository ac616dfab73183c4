"""Batches against loops over single interactions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.arrays.jagged import Jagged
from ingest.data.batch import Batch, Lists
from ingest.data.builder import BatchBuilder
from ingest.data.cutting import Parts
from ingest.data.shards import StoredRows
from ingest.features.elapsed import MISSING_TIME
from tests.small import Data


def attribute(data: Data, rows: StoredRows, feature: Any, row: int, k: int) -> Any:
    """The feature's value of interaction `k` of the row, or a list of values."""
    place: int = rows.offsets[row] + k
    if feature.of == "event":
        column, index = rows.columns[feature.name], place
    else:
        column, index = data.items.columns[feature.name], rows.columns["item"][place]
    if isinstance(column, Jagged):
        return column.values[column.offsets[index] : column.offsets[index + 1]].tolist()
    if feature.kind != "elapsed":
        return column[index].item()
    if column[index] == MISSING_TIME:
        return 1
    return 2 + sum(rows.columns["time"][place] - column[index] >= edge for edge in feature.edges)


def sequences(length: int, targets: int, max_length: int, windows: bool) -> list[tuple[int, int, int]]:
    """First interaction, last (which is no input) and number of targets of the sequences of one row."""
    if not windows:
        return [(max(length - max_length - 1, 0), length - 1, min(targets, max_length, length - 1))]
    found, last, stride = [], length - 1, max(max_length // 2, 1)
    while targets > 0 or not found:
        first = max(last - max_length, 0)
        own = targets if first == 0 else min(targets, stride)
        found.append((first, last, own))
        last, targets = last - own, targets - own
    return found


def value_of(column: Any) -> list[Any]:
    if isinstance(column, Lists):
        return [part.tolist() for part in column.values.split(column.lengths.tolist())]
    return list(column.tolist())


def check(data: Data, rows: StoredRows, batch: Batch, index: list[int], max_length: int, windows: bool) -> None:
    expected = [
        (place, row, *sequence)
        for place, row in enumerate(index)
        for sequence in sequences(int(rows.lengths[row]), int(rows.targets[row]), max_length, windows)
    ]
    expected.sort(key=lambda entry: entry[3] - entry[2])
    assert batch.rows == len(index)
    assert batch.lengths_B.tolist() == [last - first for _, _, first, last, _ in expected]
    tokens = [(row, k, k - first) for _, row, first, last, _ in expected for k in range(first, last)]
    targets = [(place, row, k) for place, row, _, last, own in expected for k in range(last - own + 1, last + 1)]
    ends = np.cumsum([last - first for _, _, first, last, _ in expected])
    at = [end - own + k for end, (*_, own) in zip(ends, expected, strict=True) for k in range(own)]

    def of(column: str, row: int, k: int) -> Any:
        return rows.columns[column][rows.offsets[row] + k].item()

    assert batch.item_T.tolist() == [of("item", row, k) for row, k, _ in tokens]
    assert batch.time_T.tolist() == [of("time", row, k) for row, k, _ in tokens]
    assert batch.request_time_T.tolist() == [of("time", row, k + 1) for row, k, _ in tokens]
    assert batch.request.keys() == {"device"}
    assert batch.request["device"].tolist() == [of("device", row, k + 1) for row, k, _ in tokens]
    assert batch.position_T.tolist() == [position for _, _, position in tokens]
    assert batch.target_position_Q.tolist() == at
    assert batch.target_Q.tolist() == [of("item", row, k) for _, row, k in targets]
    assert batch.row_Q.tolist() == [place for place, _, _ in targets]
    if batch.seen is not None:
        before = [[of("item", row, before) for before in range(k)] for _, row, k in targets]
        assert value_of(batch.seen) == before
    seconds = [of("duration", row, k) for _, row, k in targets]
    weights = [s / data.manifest.mean_duration for s in seconds]
    assert batch.weight_Q.tolist() == pytest.approx(weights, rel=1e-6)
    known = [weight * (of("item", row, k) > 1) for weight, (_, row, k) in zip(weights, targets, strict=True)]
    assert batch.item_weight_Q.tolist() == pytest.approx(known, rel=1e-6)
    if batch.target_time_Q is not None and batch.target_place_Q is not None:
        assert batch.target_time_Q.tolist() == [of("time", row, k) for _, row, k in targets]
        assert batch.target_place_Q.tolist() == [k for _, _, k in targets]
    floats = [tensor for tensor in batch.tensors() if tensor.is_floating_point() and len(tensor)]
    assert {tensor.data_ptr() % 64 for tensor in floats} == {0}  # else rounding depends on what is built together
    for feature in data.manifest.features:
        assert value_of(batch.features[feature.name]) == [
            attribute(data, rows, feature, row, k) for row, k, _ in tokens
        ]
        if feature.intent:
            assert value_of(batch.labels[feature.name]) == [
                attribute(data, rows, feature, row, k) for _, row, k in targets
            ]


@settings(max_examples=40, deadline=None)
@given(
    indices=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=9, unique=True), min_size=1, max_size=4),
    max_length=st.integers(2, 30),
    windows=st.booleans(),
)
def test_batches_are_what_single_interactions_give(
    data: Data, indices: list[list[int]], max_length: int, windows: bool
) -> None:
    """Those that are built together, too; some items are unknown."""
    builder = BatchBuilder(data.manifest, data.items, max_length, windows, with_seen=True)
    assert len(data.rows) >= 50
    item = data.rows.columns["item"].copy()
    item[::7] = 1
    columns = data.rows.columns | {"item": item}
    rows = replace(data.rows, columns=columns, users=[f"user {number}" for number in range(len(data.rows))])
    whole = Parts(np.arange(len(rows)), rows.lengths, rows.targets)
    batches = builder.build_all(rows, [whole.take(np.array(index)) for index in indices])
    for batch, index in zip(batches, indices, strict=True):
        check(data, rows, batch, index, max_length, windows)
        assert batch.users == [f"user {row}" for row in index]


def test_rows_with_few_or_no_targets(data: Data) -> None:
    """As the validation split has them: one target, or none."""
    for count in (0, 1):
        rows = replace(data.rows, targets=np.full(len(data.rows), count, dtype=np.int64))
        index = list(range(len(rows)))
        builder = BatchBuilder(data.manifest, data.items, 7, False)
        check(data, rows, builder.build(rows), index, 7, False)
