"""A batch: several users' sequences, jagged, with what each position has to predict.

    B  sequences        T  input tokens (interactions) of all sequences        Q  positions with a target

A sequence of n + 1 interactions gives n tokens; token k is to predict interaction k + 1. The last interaction is
nobody's input, so its features can not leak. Sequences are sorted by length, so that those of similar length
stand together and a kernel that wants padding pads little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.arrays import kernels
from ingest.arrays.jagged import Jagged, offsets_of, ranges
from ingest.arrays.spans import Lists, Spans
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.schema import PADDING, UNKNOWN


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
    """Tokens of each sequence; it stays on the CPU, where the layout of the attention is made."""
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
    """The weight of each target's losses: its duration over the training mean, 1 in a log without durations."""
    labels: dict[str, Tensor | JaggedTensor]
    """The intents of the next interaction: indices [Q], or lists of indices."""
    row_Q: Tensor
    """The batch's row (user) of each target."""
    users: list[object] = field(default_factory=list)
    """The log's own ids of the batch's rows; given when evaluating."""
    seen: JaggedTensor | None = None
    """The items that the user had before each target; given when evaluating."""
    target_time_Q: Tensor | None = None
    """The time of each target; given when evaluating, but not where it is the unknown next one."""
    target_place_Q: Tensor | None = None
    """The place of each target among all of its user's interactions, from 0; given when evaluating."""

    @property
    def item_weight_Q(self) -> Tensor:
        """The weight of each target's item loss: `weight_Q`, and 0 for an unknown item."""
        return self.weight_Q * (self.target_Q > UNKNOWN)

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
        if device.type == "cpu":
            return self
        moved = self._changed(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, lengths_B=self.lengths_B)

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies by itself."""
        return self._changed(Tensor.pin_memory)

    def split(self, rows: list[int], sequences: list[int], tokens: list[int], targets: list[int]) -> list[Batch]:
        """The batches that it is made of, one after the other, as views: how much of everything each has.

        Floats are copied, to memory that torch aligns: on some processors a dot product's rounding depends on where its
        operands begin, and a resumed run has other batches together.
        """
        begins = offsets_of(np.array(rows))
        parts = {
            "rows": rows,
            "lengths_B": self.lengths_B.split(sequences),
            "features": _each({name: _split(value, tokens) for name, value in self.features.items()}, len(rows)),
            "labels": _each({name: _split(value, targets) for name, value in self.labels.items()}, len(rows)),
            "users": [self.users[begin:end] for begin, end in pairwise(begins)],
            "seen": _split(self.seen, targets) if self.seen is not None else [None] * len(rows),
        }
        parts |= {name: _split(getattr(self, name), tokens) for name in ("item_T", "time_T", "position_T")}
        of_targets = ("target_position_Q", "target_Q", "weight_Q", "row_Q", "target_time_Q", "target_place_Q")
        for name in of_targets:
            value = getattr(self, name)
            parts[name] = [None] * len(rows) if value is None else _split(value, targets)
        return [Batch(**part) for part in _each(parts, len(rows))]

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def of(value: Any) -> Any:
            if isinstance(value, JaggedTensor):
                return JaggedTensor(change(value.values), change(value.lengths))
            return change(value) if isinstance(value, Tensor) else value

        changed = {name: of(value) for name, value in vars(self).items()}
        for group in ("features", "labels"):
            changed[group] = {name: of(value) for name, value in changed[group].items()}
        return replace(self, **changed)


def _split(value: Tensor | JaggedTensor, sizes: list[int]) -> Sequence[Tensor | JaggedTensor]:
    if isinstance(value, Tensor):
        parts = value.split(sizes)
        return [part.clone() for part in parts] if value.is_floating_point() else parts
    lengths = value.lengths.split(sizes)
    values = value.values.split([int(part.sum()) for part in lengths])
    return [JaggedTensor(*part) for part in zip(values, lengths, strict=True)]


def _each(lists: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """A dict of `number` values each -> as many dicts."""
    return [{name: values[n] for name, values in lists.items()} for n in range(number)]


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
        return self.build_all(rows, [np.arange(len(rows)) if index is None else index])[0]

    def build_all(self, rows: Rows, indices: Sequence[NDArray]) -> list[Batch]:
        """The batches of the rows of each of `indices`, made together, which costs less than one by one."""
        item, index = rows.columns["item"], np.concatenate(indices)
        rows_K = np.array([len(part) for part in indices])
        row_B, start_B, end_B, targets_B = self._sequences(item.lengths[index], rows.targets[index])
        batch_B = np.repeat(np.arange(len(rows_K)), rows_K)[row_B]
        order = np.lexsort((end_B - start_B, batch_B))  # batch_B rises already and stays as it is
        row_B, start_B, end_B, targets_B = row_B[order], start_B[order], end_B[order], targets_B[order]
        sequences_K = np.bincount(batch_B, minlength=len(rows_K))
        tokens_K, targets_K = (
            np.bincount(batch_B, counts_B, len(rows_K)).astype(np.int64)
            for counts_B in (end_B - start_B - 1, targets_B)
        )
        row_begin_B = item.offsets[index[row_B]]
        begin_B, length_B = row_begin_B + start_B, end_B - start_B - 1
        spans = self._spans(begin_B, length_B, targets_B)
        token_offsets = offsets_of(length_B)
        Q = int(targets_B.sum())
        position_T, target_position_Q = np.empty(token_offsets[-1], np.int64), np.empty(Q, np.int64)
        kernels.count_up(np.zeros_like(length_B), length_B, position_T)
        begin_of_batch_B = np.repeat(offsets_of(tokens_K)[:-1], sequences_K)
        kernels.count_up(token_offsets[1:] - targets_B - begin_of_batch_B, targets_B, target_position_Q)
        item_T, target_Q = spans.of(item.values)
        if self.after_last:
            target_Q = np.full(Q, PADDING)
        features, labels = self._features(rows, spans)
        evaluating, target_B = self.with_seen, begin_B + length_B + 1 - targets_B
        time_T, target_time_Q = (spans if evaluating else spans.tokens_alone).of(rows.columns["time"].values)
        number_B = row_B - np.repeat(offsets_of(rows_K)[:-1], sequences_K)
        whole = Batch(
            rows=len(index),
            lengths_B=_tensor(length_B),
            item_T=_tensor(item_T),
            time_T=_tensor(time_T),
            position_T=_tensor(position_T),
            features=features,
            target_position_Q=_tensor(target_position_Q),
            target_Q=_tensor(target_Q),
            weight_Q=self._weights(rows, spans, Q),
            labels=labels,
            row_Q=_tensor(np.repeat(number_B, targets_B)),
            users=[rows.user[row] for row in index] if evaluating else [],
            seen=self._seen(row_begin_B, target_B, targets_B, item) if evaluating else None,
            target_time_Q=_tensor(target_time_Q) if evaluating and not self.after_last else None,
            target_place_Q=_tensor(ranges(target_B - row_begin_B, targets_B)) if evaluating else None,
        )
        return whole.split(*(sizes.tolist() for sizes in (rows_K, sequences_K, tokens_K, targets_K)))

    def _spans(self, begin_B: NDArray, length_B: NDArray, targets_B: NDArray) -> Spans:
        """Of sequences that begin at `begin_B`, have `length_B` tokens and `targets_B` targets at their ends."""
        end_B = begin_B + length_B
        if self.after_last:
            return Spans(begin_B, length_B, end_B, np.zeros_like(targets_B))
        return Spans(begin_B, length_B, np.minimum(end_B + 1 - targets_B, end_B), targets_B)

    def _weights(self, rows: Rows, spans: Spans, targets: int) -> Tensor:
        if self.after_last or "duration" not in rows.columns:
            return torch.ones(targets)
        weight_Q = replace(spans, tokens_B=np.zeros_like(spans.tokens_B)).of(
            rows.columns["duration"].values, np.float32
        )[1]
        weight_Q /= np.float32(self.manifest.mean_duration)
        return torch.from_numpy(weight_Q)

    def _features(
        self, rows: Rows, spans: Spans
    ) -> tuple[dict[str, Tensor | JaggedTensor], dict[str, Tensor | JaggedTensor]]:
        """Every feature of the tokens, and the intents of the targets."""
        features: dict[str, Tensor | JaggedTensor] = {}
        labels: dict[str, Tensor | JaggedTensor] = {}
        for feature in self.features:
            name, chosen = feature.name, spans if feature.intent else spans.tokens_alone
            found: tuple[NDArray, NDArray] | tuple[Lists, Lists]
            if feature.of == "item":
                found = self.items.of(feature, rows.columns["item"].values, rows.columns["time"].values, chosen)
            elif feature.kind == "categories":
                found = chosen.of_lists(rows.nested[name])
            else:
                found = chosen.of(rows.columns[name].values, np.float32 if feature.is_number else np.int64)
            features[name] = _feature_tensor(found[0])
            if feature.intent and not self.after_last:
                labels[name] = _feature_tensor(found[1])
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
                column = length.astype(np.float32) if feature.is_number else length
                if values is features or feature.intent:
                    values[feature.name] = _feature_tensor(
                        (zero[:0], length) if feature.kind == "categories" else column
                    )
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
            target_time_Q=_tensor(zero[:0]) if self.with_seen and not self.after_last else None,
            target_place_Q=_tensor(zero[:0]) if self.with_seen else None,
        )


def _feature_tensor(values: NDArray | Lists) -> Tensor | JaggedTensor:
    if isinstance(values, tuple):
        return JaggedTensor(torch.from_numpy(values[0]), torch.from_numpy(values[1]))
    return torch.from_numpy(values)


def _tensor(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
