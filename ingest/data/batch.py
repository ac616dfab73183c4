"""A batch: several users' sequences, jagged, with what each position has to predict.

    B  sequences        T  input tokens (interactions) of all sequences        Q  positions with a target

A sequence of n + 1 interactions gives n tokens; token k is to predict interaction k + 1. The last interaction is
nobody's input, so its features can not leak. Sequences are sorted by length, so that those of similar length
stand together and a kernel that wants padding pads little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingest.arrays.jagged import offsets_of
from ingest.features.feature import FIRST_VALUE, UNKNOWN


@dataclass(frozen=True)
class Lists:
    """A list of values for each token or target: `values` [N] and `lengths` [T] or [Q]."""

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch; integers are int64."""

    rows: int
    """Users' rows that it was made from, or parts of them."""
    items: int
    """Training knows the items from `FIRST_VALUE` to before this one (`Manifest.items`)."""
    lengths_B: Tensor
    """Tokens of each sequence; it stays on the CPU, where the layout of the attention is made."""
    item_T: Tensor
    time_T: Tensor
    position_T: Tensor
    """Place of the token in its sequence, from 0."""
    features: dict[str, Tensor | Lists]
    """Every declared feature of the inputs: indices [T], numbers [T] or lists of indices."""
    request_time_T: Tensor
    """The time of the interaction after each token: that of the request."""
    request: dict[str, Tensor]
    """The features of the interaction after each token that are known at the request: indices [T]."""
    target_position_Q: Tensor
    """The token from which each target is predicted."""
    target_Q: Tensor
    """The item of the next interaction."""
    weight_Q: Tensor
    """The weight of each target's losses: its duration over the training mean, 1 in a log without durations."""
    labels: dict[str, Tensor | Lists]
    """The intents of the next interaction: indices [Q], or lists of indices."""
    row_Q: Tensor
    """The batch's row (user) of each target."""
    users: list[object] = field(default_factory=list)
    """The log's own ids of the batch's rows; given when evaluating."""
    seen: Lists | None = None
    """The items that the user had before each target; given when evaluating."""
    target_time_Q: Tensor | None = None
    """The time of each target; given when evaluating, but not where it is the unknown next one."""
    target_place_Q: Tensor | None = None
    """The place of each target among all of its user's interactions, from 0; given when evaluating."""

    true_item_T: Tensor | None = None
    """The items of the tokens where `item_T` hides some of them."""
    scored_Q: Tensor | None = None
    """Whether each target has an item loss, where others have one than those that training knows."""

    @property
    def past_T(self) -> Tensor:
        """The items of the tokens, hidden or not."""
        return self.item_T if self.true_item_T is None else self.true_item_T

    @property
    def again_Q(self) -> Tensor:
        """Whether each target's item is among the tokens of its sequence up to the one it is predicted from."""
        sequence_T = torch.repeat_interleave(self.lengths_B).to(self.item_T.device)
        width = self.tokens + 1
        pair_N = torch.cat([self.past_T, self.target_Q]) * width
        pair_N += torch.cat([sequence_T, sequence_T[self.target_position_Q]])
        place_N = torch.unique(pair_N, return_inverse=True)[1]
        first_N = torch.full_like(pair_N, self.tokens)
        token_T = torch.arange(self.tokens, device=pair_N.device)
        first_N.scatter_reduce_(0, place_N[: self.tokens], token_T, "amin")
        found_Q = first_N[place_N[self.tokens :]] <= self.target_position_Q
        return found_Q & (self.target_Q >= FIRST_VALUE)

    @property
    def known_Q(self) -> Tensor:
        """Whether training knows each target's item."""
        return (self.target_Q >= FIRST_VALUE) & (self.target_Q < self.items)

    def in_table(self, item_N: Tensor) -> Tensor:
        """The items, `UNKNOWN` where training does not know them: what the embedding table has a row for."""
        return item_N.masked_fill(item_N >= self.items, UNKNOWN)

    @property
    def item_weight_Q(self) -> Tensor:
        """The weight of each target's item loss: `weight_Q`, and 0 where it has none."""
        return self.weight_Q * (self.known_Q if self.scored_Q is None else self.scored_Q)

    @property
    def tokens(self) -> int:
        return len(self.item_T)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the batch."""
        for value in (*vars(self).values(), *self.features.values(), *self.labels.values()):
            if isinstance(value, Lists):
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

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: changed(each) for name, each in value.items()}
            if isinstance(value, Lists):
                return Lists(change(value.values), change(value.lengths))
            return change(value) if isinstance(value, Tensor) else value

        return Batch(**{name: changed(value) for name, value in vars(self).items()})

    def split(self, rows: list[int], sequences: list[int], tokens: list[int], targets: list[int]) -> list[Batch]:
        """The batches that it is made of, one after the other, as views: how much of everything each has.

        The last letter of a tensor's name says of what. Floats are copied, to memory that torch aligns: on some
        processors a dot product's rounding depends on where its operands begin, and a resumed run has other batches
        together.
        """
        sizes = {"B": sequences, "T": tokens, "Q": targets}
        sizes |= {"features": tokens, "request": tokens, "labels": targets, "seen": targets}
        parts: dict[str, Any] = {
            name: _split(value, sizes[name if name in sizes else name[-1]])
            for name, value in vars(self).items()
            if name not in ("rows", "items", "users")
        }
        parts["rows"], parts["items"] = rows, [self.items] * len(rows)
        parts["users"] = [self.users[begin:end] for begin, end in pairwise(offsets_of(np.array(rows)))]
        return [Batch(**{name: part[n] for name, part in parts.items()}) for n in range(len(rows))]


def _split(value: Any, sizes: list[int]) -> Any:
    """What the batches that have `sizes` of it have of a tensor, of lists, of a dict of them or of None."""
    if value is None:
        return [None] * len(sizes)
    if isinstance(value, dict):
        parts = {name: _split(each, sizes) for name, each in value.items()}
        return [{name: part[n] for name, part in parts.items()} for n in range(len(sizes))]
    if isinstance(value, Lists):
        lengths = value.lengths.split(sizes)
        values = value.values.split([int(part.sum()) for part in lengths])
        return [Lists(*part) for part in zip(values, lengths, strict=True)]
    parts = value.split(sizes)
    return [part.clone() for part in parts] if value.is_floating_point() else parts
