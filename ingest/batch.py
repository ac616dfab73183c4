"""A batch: several users' sequences, jagged, with what each position has to predict.

    B  sequences        T  input tokens (interactions) of all sequences        Q  positions with a target

A sequence of n + 1 interactions gives n tokens; token k is to predict interaction k + 1. The last interaction is
nobody's input, so its features can not leak. Sequences are sorted by length, so that those of similar length
stand together and a kernel that wants padding pads little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest import kernels
from ingest.items import ItemTable
from ingest.jagged import Jagged, offsets_of, ranges
from ingest.manifest import Manifest, PreparedFeature
from ingest.schema import PADDING, UNKNOWN


@dataclass(frozen=True)
class JaggedTensor:
    """A list of values for each token or target: `values` [N] and `lengths` [T] or [Q]."""

    values: Tensor
    lengths: Tensor


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

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the batch."""
        for value in (*vars(self).values(), *self.features.values(), *self.labels.values()):
            if isinstance(value, JaggedTensor):
                yield from (value.values, value.lengths)
            elif isinstance(value, Tensor):
                yield value

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; from pinned memory the copy goes on after the call."""
        return self if device.type == "cpu" else self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies by itself."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def of(value: Any) -> Any:
            if isinstance(value, JaggedTensor):
                return JaggedTensor(change(value.values), change(value.lengths))
            return change(value) if isinstance(value, Tensor) else value

        changed = {name: of(value) for name, value in vars(self).items()}
        for group in ("features", "labels"):
            changed[group] = {name: of(value) for name, value in changed[group].items()}
        return replace(self, **changed)


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
class _Runs:
    """A stretch of consecutive values for each sequence."""

    start_B: NDArray[np.int64]
    length_B: NDArray[np.int64]
    size: int
    """The sum of the lengths."""

    def of(self, values: NDArray, kind: Any = np.int64) -> NDArray:
        """The values, one stretch after the other: [size]."""
        out = np.empty(self.size, dtype=kind)
        kernels.copy_runs(values, self.start_B, self.length_B, out)
        return out

    def of_lists(self, lists: Jagged) -> JaggedTensor:
        """Likewise of lists."""
        lengths = np.empty(self.size, dtype=np.int64)
        kernels.copy_lengths(lists.offsets, self.start_B, self.length_B, lengths)
        first_B = lists.offsets[self.start_B]
        count_B = lists.offsets[self.start_B + self.length_B] - first_B
        values = _Runs(first_B, count_B, int(count_B.sum())).of(lists.values)
        return JaggedTensor(_tensor(values), _tensor(lengths))


@dataclass(frozen=True)
class _Places:
    """Where a batch's interactions are in the stored columns, and in what was looked up for all N of them."""

    all: _Runs
    """Those of every sequence, targets included."""
    tokens: _Runs
    targets: _Runs | None
    """None where the targets are still to come."""
    tokens_of_all: _Runs
    """The tokens among all N."""
    targets_of_all: _Runs | None


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
        row_begin_B = item.offsets[index[row_B]]
        begin_B, length_B = row_begin_B + start_B, end_B - start_B - 1
        places = self._places(begin_B, length_B, targets_B)
        token_offsets = offsets_of(length_B)
        Q = int(targets_B.sum())
        position_T, target_position_Q = np.empty(token_offsets[-1], np.int64), np.empty(Q, np.int64)
        kernels.count_up(np.zeros_like(length_B), length_B, position_T)
        kernels.count_up(token_offsets[1:] - targets_B, targets_B, target_position_Q)
        target_Q = np.full(Q, PADDING) if places.targets is None else places.targets.of(item.values)
        features, labels = self._features(rows, places)
        return Batch(
            rows=len(index),
            lengths_B=_tensor(length_B),
            item_T=_tensor(places.tokens.of(item.values)),
            time_T=_tensor(places.tokens.of(rows.columns["time"].values)),
            position_T=_tensor(position_T),
            features=features,
            target_position_Q=_tensor(target_position_Q),
            target_Q=_tensor(target_Q),
            weight_Q=self._weights(rows, places, target_Q > UNKNOWN),
            labels=labels,
            row_Q=_tensor(np.repeat(row_B, targets_B)),
            users=[rows.user[row] for row in index] if self.with_seen else [],
            seen=self._seen(row_begin_B, begin_B + length_B + 1 - targets_B, targets_B, item)
            if self.with_seen
            else None,
        )

    def _places(self, begin_B: NDArray, length_B: NDArray, targets_B: NDArray) -> _Places:
        """Of sequences that begin at `begin_B`, have `length_B` tokens and `targets_B` targets at their ends."""
        held_out = 0 if self.after_last else 1
        span_B = length_B + held_out
        packed_B = offsets_of(span_B)
        N, T, Q = int(packed_B[-1]), int(length_B.sum()), int(targets_B.sum())
        before_B = span_B - targets_B
        return _Places(
            all=_Runs(begin_B, span_B, N),
            tokens=_Runs(begin_B, length_B, T),
            targets=_Runs(begin_B + before_B, targets_B, Q) if held_out else None,
            tokens_of_all=_Runs(packed_B[:-1], length_B, T),
            targets_of_all=_Runs(packed_B[:-1] + before_B, targets_B, Q) if held_out else None,
        )

    def _weights(self, rows: Rows, places: _Places, known_Q: NDArray) -> Tensor:
        if places.targets is None or "duration" not in rows.columns:
            return torch.from_numpy(known_Q.astype(np.float32))
        weight_Q = places.targets.of(rows.columns["duration"].values, np.float32)
        weight_Q /= np.float32(self.manifest.mean_duration)
        weight_Q *= known_Q
        return torch.from_numpy(weight_Q)

    def _features(
        self, rows: Rows, places: _Places
    ) -> tuple[dict[str, Tensor | JaggedTensor], dict[str, Tensor | JaggedTensor]]:
        """Every feature of the tokens, and the intents of the targets."""
        features: dict[str, Tensor | JaggedTensor] = {}
        labels: dict[str, Tensor | JaggedTensor] = {}
        looked_up = [feature for feature in self.features if feature.of == "item"]
        item_N = places.all.of(rows.columns["item"].values, np.int32) if looked_up else None
        time_N = places.all.of(rows.columns["time"].values) if looked_up else None
        for feature in self.features:
            column: NDArray | Jagged
            if feature.of == "item":
                assert item_N is not None
                assert time_N is not None
                column, tokens, targets = (
                    self.items.gather(feature, item_N, time_N),
                    places.tokens_of_all,
                    places.targets_of_all,
                )
            else:
                of_lists = feature.kind == "categories"
                column = rows.nested[feature.name] if of_lists else rows.columns[feature.name].values
                tokens, targets = places.tokens, places.targets
            features[feature.name] = _of_runs(column, tokens, feature)
            if feature.intent and targets is not None:
                labels[feature.name] = _of_runs(column, targets, feature)
        return features, labels

    def _seen(self, begin_B: NDArray, target_B: NDArray, targets_B: NDArray, item: Jagged) -> JaggedTensor:
        """Every item of the row, which begins at `begin_B`, before each target, the first of which is at `target_B`."""
        begin_Q = np.repeat(begin_B, targets_B)
        seen = item.slices(begin_Q, ranges(target_B, targets_B) - begin_Q)
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


def _of_runs(column: NDArray | Jagged, chosen: _Runs, feature: PreparedFeature) -> Tensor | JaggedTensor:
    if isinstance(column, Jagged):
        return chosen.of_lists(column)
    return torch.from_numpy(chosen.of(column, np.float32 if feature.is_number else np.int64))


def _feature_tensor(column: NDArray | Jagged, feature: PreparedFeature) -> Tensor | JaggedTensor:
    if isinstance(column, Jagged):
        return JaggedTensor(_tensor(column.values), _tensor(column.lengths))
    return torch.from_numpy(column.astype(np.float32)) if feature.is_number else _tensor(column)


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
