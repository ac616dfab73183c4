"""A batch: several users' sequences, jagged, with what each position has to predict.

    B  sequences        T  input tokens (interactions) of all sequences        Q  positions with a target

A sequence of n + 1 interactions gives n tokens; token k is to predict interaction k + 1. The last interaction is
nobody's input, so its features can not leak. Sequences are sorted by length, so that those of similar length
stand together and a kernel that wants padding pads little.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.items import ItemTable
from ingest.jagged import Jagged, offsets_of, ranges
from ingest.manifest import Manifest, PreparedFeature
from ingest.schema import PADDING, UNKNOWN


@dataclass(frozen=True)
class JaggedTensor:
    """A list of values for each token or target: `values` [N] and `lengths` [T] or [Q]."""

    values: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> JaggedTensor:
        return JaggedTensor(self.values.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch; integers are int64."""

    rows: int
    """Users' rows that it was made from."""
    lengths_B: Tensor
    item_T: Tensor
    time_T: Tensor
    position_T: Tensor
    """Place of the token in its sequence, from 0."""
    features: dict[str, Tensor | JaggedTensor]
    """Every declared feature of the inputs: indices [T], numbers [T] or lists of indices."""
    target_position_Q: Tensor
    """The token from which each target is predicted."""
    target_Q: Tensor
    """The item of the next interaction."""
    weight_Q: Tensor
    """The weight of each target's loss: its duration over the training mean, 1 in a log without durations; 0 for
    an unknown item."""
    labels: dict[str, Tensor | JaggedTensor]
    """The intents of the next interaction: indices [Q], or lists of indices."""
    row_Q: Tensor
    """The batch's row (user) of each target."""
    users: list[object] = field(default_factory=list)
    """The log's own ids of the batch's rows; given when evaluating."""
    seen: JaggedTensor | None = None
    """The items that the user had before each target; given when evaluating."""

    @property
    def tokens(self) -> int:
        return len(self.item_T)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | JaggedTensor)
        }
        for group in ("features", "labels"):
            moved[group] = {name: value.to(device) for name, value in getattr(self, group).items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Rows:
    """Users' rows as they are stored: `columns` holds a `Jagged` for each list column; R rows."""

    user: list[object]
    targets: NDArray[np.int64]
    columns: dict[str, Jagged]
    nested: dict[str, Jagged]
    """For event features of kind categories: the lists of every interaction of these rows, one after the other."""

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def concat(cls, parts: list[Rows]) -> Rows:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls([], np.zeros(0, dtype=np.int64), {}, {})
        return cls(
            [user for part in parts for user in part.user],
            np.concatenate([part.targets for part in parts]),
            {name: Jagged.concat([part.columns[name] for part in parts]) for name in parts[0].columns},
            {name: Jagged.concat([part.nested[name] for part in parts]) for name in parts[0].nested},
        )


@dataclass(frozen=True)
class _Places:
    """Where a batch's N interactions are: those of its sequences, one sequence after the other, targets included."""

    rows: Rows
    all_N: NDArray[np.int64]
    """Their places in the columns of `rows`."""
    token_T: NDArray[np.int64] | slice
    """Which of them are inputs."""
    at_Q: NDArray[np.int64] | None
    """Which of them are targets; None where the targets are still to come."""

    def gather(self, name: str) -> NDArray:
        """A column's values, [N]."""
        return self.rows.columns[name].values[self.all_N]


class BatchBuilder:
    """Cuts rows into sequences and builds a `Batch` from them.

    A row with more than `max_length` + 1 interactions is cut: with `windows` into several sequences that hold every
    target once, each with at least half of `max_length` of history where there is one; without into its last.

    With `after_last` a row is a history that is to go on: all its interactions are inputs, and its one target is the
    one after the last, whose item (`PADDING`) and intents nobody knows.
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
    ) -> None:
        self.manifest, self.items = manifest, items
        self.features = manifest.features if features else []
        self.max_length, self.windows = max_length, windows and not after_last
        self.with_seen, self.after_last = with_seen, after_last

    def tokens_of(self, lengths: NDArray, targets: NDArray) -> NDArray[np.int64]:
        """How many tokens each row gives: [R] interactions and targets -> [R]."""
        rows, starts, ends, _ = self._sequences(lengths, targets)
        return np.bincount(rows, weights=ends - starts - 1, minlength=len(lengths)).astype(np.int64)

    def _sequences(self, lengths: NDArray, targets: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Row, start, end and number of targets of every sequence; the last interaction is no input."""
        if self.after_last:
            lengths, targets = lengths + 1, np.ones_like(targets)
        span = self.max_length
        stride = max(span // 2, 1)
        count = np.ones(len(lengths), dtype=np.int64)
        if self.windows:
            until_whole = -(-np.maximum(lengths - span - 1, 0) // stride)
            count = np.minimum(np.maximum(-(-targets // stride), 1), 1 + until_whole)
        rows = np.repeat(np.arange(len(lengths)), count)
        nth = ranges(np.zeros(len(count), dtype=np.int64), count)
        ends = lengths[rows] - nth * stride
        starts = np.maximum(ends - span - 1, 0)
        limit = np.where(nth + 1 < count[rows], stride, ends - starts - 1)
        return rows, starts, ends, np.minimum(targets[rows] - nth * stride, limit)

    def build(self, rows: Rows, index: NDArray | None = None) -> Batch:
        """The batch of all sequences of `rows`, or of its rows `index` in that order."""
        index = np.arange(len(rows)) if index is None else index
        item = rows.columns["item"]
        row_B, start_B, end_B, targets_B = self._sequences(item.lengths[index], rows.targets[index])
        order = np.argsort(end_B - start_B, kind="stable")
        row_B, start_B, end_B, targets_B = row_B[order], start_B[order], end_B[order], targets_B[order]
        begin_B = item.offsets[index[row_B]]
        length_B = end_B - start_B - 1
        held_out = 0 if self.after_last else 1
        all_N = ranges(begin_B + start_B, length_B + held_out)
        end_B = np.cumsum(length_B + held_out)
        token_T: NDArray | slice = slice(None)
        if held_out:
            inner_N = np.ones(len(all_N), dtype=bool)
            inner_N[end_B - 1] = False
            token_T = np.flatnonzero(inner_N)
        at_Q = ranges(end_B - targets_B, targets_B)
        places = _Places(rows, all_N, token_T, None if self.after_last else at_Q)
        item_N = places.gather("item").astype(np.int64)
        time_N = places.gather("time")
        target_Q = np.full(len(at_Q), PADDING) if self.after_last else item_N[at_Q]
        target_place_Q = begin_B + start_B + length_B if self.after_last else all_N[at_Q]
        features, labels = self._features(places, item_N, time_N)
        token_offsets = offsets_of(length_B)
        return Batch(
            rows=len(index),
            lengths_B=_tensor(length_B),
            item_T=_tensor(item_N[token_T]),
            time_T=_tensor(time_N[token_T]),
            position_T=_tensor(np.arange(token_offsets[-1]) - np.repeat(token_offsets[:-1], length_B)),
            features=features,
            target_position_Q=_tensor(ranges(token_offsets[1:] - targets_B, targets_B)),
            target_Q=_tensor(target_Q),
            weight_Q=self._weights(places, target_Q > UNKNOWN),
            labels=labels,
            row_Q=_tensor(np.repeat(row_B, targets_B)),
            users=[rows.user[row] for row in index] if self.with_seen else [],
            seen=self._seen(begin_B, target_place_Q, targets_B, item) if self.with_seen else None,
        )

    def _weights(self, places: _Places, known_Q: NDArray) -> Tensor:
        if places.at_Q is None or "duration" not in places.rows.columns:
            return torch.from_numpy(known_Q.astype(np.float32))
        weight_Q = places.rows.columns["duration"].values[places.all_N[places.at_Q]] / self.manifest.mean_duration
        return torch.from_numpy((weight_Q * known_Q).astype(np.float32))

    def _features(
        self, places: _Places, item_N: NDArray, time_N: NDArray
    ) -> tuple[dict[str, Tensor | JaggedTensor], dict[str, Tensor | JaggedTensor]]:
        """Every feature of the tokens, and the intents of the targets."""
        features: dict[str, Tensor | JaggedTensor] = {}
        labels: dict[str, Tensor | JaggedTensor] = {}
        for feature in self.features:
            chosen = [(features, places.token_T)]
            if feature.intent and places.at_Q is not None:
                chosen.append((labels, places.at_Q))
            if feature.kind == "categories":
                of_items, of_events = self.items.columns, places.rows.nested
                lists = of_items[feature.name] if feature.of == "item" else of_events[feature.name]
                assert isinstance(lists, Jagged)
                where_N = item_N if feature.of == "item" else places.all_N
                for values, index in chosen:
                    values[feature.name] = _feature_tensor(lists.take(where_N[index]), feature)
                continue
            of_item = feature.of == "item"
            column_N = self.items.gather(feature, item_N, time_N) if of_item else places.gather(feature.name)
            assert isinstance(column_N, np.ndarray)
            for values, index in chosen:
                values[feature.name] = _feature_tensor(column_N[index], feature)
        return features, labels

    def _seen(self, begin_B: NDArray, target_Q: NDArray, targets_B: NDArray, item: Jagged) -> JaggedTensor:
        """Every item of the row, which begins at `begin_B`, before the target at `target_Q`."""
        begin_Q = np.repeat(begin_B, targets_B)
        seen = item.slices(begin_Q, target_Q - begin_Q)
        return JaggedTensor(_tensor(seen.values), _tensor(seen.lengths))

    def empty(self) -> Batch:
        """A batch of one padding token and no target, for a worker that has no more data while others have."""
        zero = np.zeros(1, dtype=np.int64)
        features: dict[str, Tensor | JaggedTensor] = {}
        labels: dict[str, Tensor | JaggedTensor] = {}
        for feature in self.features:
            for values, length in ((features, zero), (labels, zero[:0])):
                column = Jagged.from_lengths(zero[:0], length) if feature.kind == "categories" else length
                if values is features or feature.intent:
                    values[feature.name] = _feature_tensor(column, feature)
        return Batch(
            rows=0,
            lengths_B=_tensor(zero + 1),
            item_T=_tensor(zero + PADDING),
            time_T=_tensor(zero + self.manifest.first_time),
            position_T=_tensor(zero),
            features=features,
            target_position_Q=_tensor(zero[:0]),
            target_Q=_tensor(zero[:0]),
            weight_Q=torch.zeros(0),
            labels=labels,
            row_Q=_tensor(zero[:0]),
            seen=JaggedTensor(_tensor(zero[:0]), _tensor(zero[:0])) if self.with_seen else None,
        )


def _feature_tensor(column: NDArray | Jagged, feature: PreparedFeature) -> Tensor | JaggedTensor:
    if isinstance(column, Jagged):
        return JaggedTensor(_tensor(column.values), _tensor(column.lengths))
    return torch.from_numpy(column.astype(np.float32)) if feature.is_number else _tensor(column)


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
