"""Builds batches of users' rows, with numpy's gathers: no Python loop over rows.

B  sequences        T  tokens        Q  targets        K  batches that are built together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.arrays.jagged import Column, Integers, Jagged, offsets_of, ranges
from ingest.data.batch import Batch, Lists
from ingest.data.cutting import Cutting, Parts
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.requests import Requests
from ingest.data.shards import StoredRows
from ingest.features.feature import PADDING, UNKNOWN, PreparedFeature


class BatchBuilder:
    """Builds a `Batch` from rows, which `ingest.data.cutting` cuts into sequences.

    With `after_last` a row is a history that is to go on: all its interactions are inputs, and its one target is the
    one after the last, whose item (`PADDING`) and intents nobody knows. It is asked for at `moment`, in milliseconds
    since 1970 (by default the time of the log's last event), and its features of the request are unknown; or, with
    `requests`, both are those of its user's request, which every row has to have.
    """

    def __init__(
        self,
        manifest: Manifest,
        items: ItemTable,
        max_length: int,
        windows: bool,
        with_seen: bool = False,
        after_last: bool = False,
        features: bool = True,
        moment: int | None = None,
        requests: Requests | None = None,
    ) -> None:
        self.manifest, self.items, self.requests = manifest, items, requests
        self.moment = manifest.end if moment is None else moment
        self.features = manifest.features if features else []
        self.cutting = Cutting(max_length, windows, after_last)
        self.with_seen, self.after_last = with_seen, after_last

    def build(self, rows: StoredRows, index: NDArray[np.int64] | None = None) -> Batch:
        """The batch of all sequences of `rows`, or of its rows `index` in that order."""
        index = np.arange(len(rows)) if index is None else index
        return self.build_all(rows, [Parts(index, rows.lengths[index], rows.targets[index])])[0]

    def build_all(self, rows: StoredRows, batches: Sequence[Parts]) -> list[Batch]:
        """The batch of each of `batches`, parts of `rows`; made together, which costs less than one by one."""
        rows_K = np.array([len(parts) for parts in batches])
        index = np.concatenate([parts.row_P for parts in batches])
        lengths = np.concatenate([parts.length_P for parts in batches])
        targets = np.concatenate([parts.targets_P for parts in batches])
        row_B, start_B, end_B, targets_B = self.cutting.sequences(Parts(index, lengths, targets))
        batch_B = np.repeat(np.arange(len(rows_K)), rows_K)[row_B]
        order = np.lexsort((end_B - start_B, batch_B))  # batch_B rises already and stays as it is
        row_B, start_B, end_B, targets_B = row_B[order], start_B[order], end_B[order], targets_B[order]
        length_B = end_B - start_B - 1
        sequences_K = np.bincount(batch_B, minlength=len(rows_K))
        tokens_K, targets_K = (
            np.bincount(batch_B, counts_B, len(rows_K)).astype(np.int64) for counts_B in (length_B, targets_B)
        )
        # where the tokens and the targets are among the interactions of `rows`
        row_begin_B = rows.offsets[index[row_B]]
        target_B = row_begin_B + end_B - targets_B
        place_T, place_Q = ranges(row_begin_B + start_B, length_B), ranges(target_B, targets_B)
        item, time = rows.columns["item"], rows.columns["time"]
        token_of_batch_B = offsets_of(length_B)[1:] - np.repeat(offsets_of(tokens_K)[:-1], sequences_K)
        row_of_batch_B = row_B - np.repeat(offsets_of(rows_K)[:-1], sequences_K)
        known = not self.after_last
        next_T = place_T + 1
        last_B, request_B = np.empty(0, dtype=np.int64), None
        if not known:  # of a row's last interaction there is none
            last_B = offsets_of(length_B)[1:] - 1
            next_T[last_B] -= 1
            if self.requests is not None:
                request_B = self.requests.places([rows.users[row] for row in index[row_B]])
        asked = [feature for feature in self.features if feature.at_request]
        features = {feature.name: self._feature(feature, rows, place_T) for feature in self.features}
        intents = [feature for feature in self.features if feature.intent and known]
        whole = Batch(
            rows=len(index),
            items=self.manifest.items,
            lengths_B=_tensor(length_B),
            item_T=_tensor(item.take(place_T)),
            time_T=_tensor(time.take(place_T)),
            position_T=_tensor(ranges(np.zeros_like(length_B), length_B)),
            features=features,
            request_time_T=_tensor(_put(time.take(next_T), last_B, self._asked("time", request_B))),
            request={
                f.name: _tensor(_put(rows.columns[f.name].take(next_T), last_B, self._asked(f.name, request_B)))
                for f in asked
            },
            target_position_Q=_tensor(ranges(token_of_batch_B - targets_B, targets_B)),
            target_Q=_tensor(item.take(place_Q) if known else np.full_like(place_Q, PADDING)),
            weight_Q=self._weights(rows, place_Q),
            labels={feature.name: self._feature(feature, rows, place_Q) for feature in intents},
            row_Q=_tensor(np.repeat(row_of_batch_B, targets_B)),
        )
        if self.with_seen:
            evaluated: dict[str, Any] = {
                "users": [rows.users[row] for row in index],
                "seen": _seen(item, np.repeat(row_begin_B, targets_B), place_Q),
                "target_time_Q": _tensor(time.take(place_Q)) if known else None,
                "target_place_Q": _tensor(place_Q - np.repeat(row_begin_B, targets_B)),
            }
            whole = replace(whole, **evaluated)
        return whole.split(*(sizes.tolist() for sizes in (rows_K, sequences_K, tokens_K, targets_K)))

    def _asked(self, name: str, request_B: Integers | None) -> NDArray | int:
        """What is known of the requests after rows' last interactions: their `time`, or a feature."""
        if request_B is None or self.requests is None:
            return self.moment if name == "time" else UNKNOWN
        return (self.requests.time_N if name == "time" else self.requests.features[name])[request_B]

    def _weights(self, rows: StoredRows, place_Q: Integers) -> Tensor:
        if self.after_last or "duration" not in rows.columns:
            return torch.ones(len(place_Q))
        return torch.from_numpy(rows.columns["duration"].take(place_Q) / np.float32(self.manifest.mean_duration))

    def _feature(self, feature: PreparedFeature, rows: StoredRows, place_N: Integers) -> Tensor | Lists:
        """The feature of the interactions at `place_N`."""
        if feature.of == "event":
            return _feature_tensor(rows.columns[feature.name].take(place_N))
        item_N, time_N = (rows.columns[name].take(place_N) for name in ("item", "time"))
        return _feature_tensor(self.items.of(feature, item_N, time_N))

    def empty(self) -> Batch:
        """A batch of one padding token and no target, for a worker that has no more data while others have."""
        zero, none = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        return Batch(
            rows=0,
            items=self.manifest.items,
            lengths_B=zero + 1,
            item_T=zero + PADDING,
            time_T=zero + self.manifest.first_time,
            position_T=zero,
            features={feature.name: _padding(feature, 1) for feature in self.features},
            request_time_T=zero + self.manifest.first_time,
            request={feature.name: zero + PADDING for feature in self.features if feature.at_request},
            target_position_Q=none,
            target_Q=none,
            weight_Q=torch.zeros(0),
            labels={feature.name: _padding(feature, 0) for feature in self.features if feature.intent},
            row_Q=none,
            seen=Lists(none, none) if self.with_seen else None,
            target_time_Q=none if self.with_seen and not self.after_last else None,
            target_place_Q=none if self.with_seen else None,
        )


def _padding(feature: PreparedFeature, tokens: int) -> Tensor | Lists:
    zeros = torch.zeros(tokens, dtype=torch.float32 if feature.is_number else torch.int64)
    return Lists(zeros[:0], zeros) if feature.is_list else zeros


def _put(value_N: Column, index_M: Integers, value: NDArray | int) -> NDArray:
    """The values, with `value` at `index_M`."""
    assert isinstance(value_N, np.ndarray)
    value_N[index_M] = value
    return value_N


def _seen(item: Column, begin_Q: Integers, place_Q: Integers) -> Lists:
    """Every item of a target's row before it; the row begins at `begin_Q`."""
    lengths_Q = place_Q - begin_Q
    return Lists(_tensor(item.take(ranges(begin_Q, lengths_Q))), _tensor(lengths_Q))


def _feature_tensor(values: Column) -> Tensor | Lists:
    if isinstance(values, Jagged):
        return Lists(_tensor(values.values), _tensor(values.lengths))
    return torch.from_numpy(values) if values.dtype.kind == "f" else _tensor(values)


def _tensor(values: Column) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
