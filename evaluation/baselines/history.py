"""What each target's user had before it, as arrays.

    Q  targets        N  interactions before them, each target's newest first      U  the same, each item once

Items that training does not know but the log does are among them; padding and unknown are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ingest.arrays.jagged import Integers, offsets_of, ranges
from ingest.data.batch import Batch
from ingest.features.feature import FIRST_VALUE


@dataclass(frozen=True)
class History:
    """`query_N`: the target that an interaction came before; `back_N`: by how many places, the last one's is 0."""

    queries: int
    query_N: Integers
    item_N: Integers
    back_N: Integers

    @classmethod
    def of(cls, batch: Batch) -> History:
        assert batch.seen is not None
        items, lengths_Q = batch.seen.values.cpu().numpy(), batch.seen.lengths.cpu().numpy()
        return cls._back_from(offsets_of(lengths_Q)[1:] - 1, lengths_Q, items)

    @classmethod
    def of_tokens(cls, batch: Batch) -> History:
        """Of the batch's tokens alone, so no longer than its sequences."""
        last_Q = batch.target_position_Q.cpu().numpy()
        return cls._back_from(last_Q, batch.position_T.cpu().numpy()[last_Q] + 1, batch.item_T.cpu().numpy())

    @classmethod
    def _back_from(cls, last_Q: Integers, lengths_Q: Integers, items: Integers) -> History:
        """`lengths_Q` of the `items`, back from the places `last_Q`."""
        query_N = np.repeat(np.arange(len(lengths_Q)), lengths_Q)
        back_N = ranges(np.zeros_like(lengths_Q), lengths_Q)
        item_N = items[last_Q[query_N] - back_N]
        known = item_N >= FIRST_VALUE
        return cls(len(lengths_Q), query_N[known], item_N[known], back_N[known])

    @cached_property
    def groups(self) -> tuple[Integers, Integers]:
        """The newest interaction with each item, ascending by target and item, and every interaction's: [U], [N]."""
        key_N = self.query_N * (int(self.item_N.max(initial=0)) + 1) + self.item_N
        _, newest_U, group_N = np.unique(key_N, return_index=True, return_inverse=True)
        return newest_U, group_N

    def first(self, length: int) -> tuple[Integers, Integers]:
        """Of each target's `length` newest items, newest first: the place in `groups`, how many items ago: [K] each."""
        newest_U, _ = self.groups
        by_time = np.argsort(newest_U)
        back_U = places(self.query_N[newest_U][by_time], self.queries)
        kept = back_U < length
        return by_time[kept], back_U[kept]

    def newest(self, length: int | None) -> Integers:
        """The different items before each target, newest first, `length` of them, padded: [Q, length].

        None: all of them, as many columns as the longest has on any worker; every worker calls it.
        """
        newest_U = np.sort(self.groups[0])
        query_U = self.query_N[newest_U]
        if length is None:
            length = _largest(int(np.bincount(query_U).max(initial=1)))
        return padded(query_U, self.item_N[newest_U], self.queries, length)


def _largest(value: int) -> int:
    """The largest of all workers' values."""
    found: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return max(found)


def places(group_N: Integers, groups: int) -> Integers:
    """The place of each element in its group, from 0; groups ascend: [N]."""
    lengths = np.bincount(group_N, minlength=groups)
    return ranges(np.zeros_like(lengths), lengths)


def padded(query_N: Integers, value_N: NDArray[Any], queries: int, width: int) -> NDArray[Any]:
    """The first `width` values of each query, which ascend, and then zeros: [Q, width]."""
    table = np.zeros((queries, width), dtype=value_N.dtype)
    place_N = places(query_N, queries)
    kept = place_N < width
    table[query_N[kept], place_N[kept]] = value_N[kept]
    return table


def place_weights(item_QL: Tensor, decay: float) -> Tensor:
    """1 for each query's first item, `decay` for the second, its square for the third ...; 0 for padding: [Q, L]."""
    place_L = torch.arange(item_QL.shape[1], device=item_QL.device, dtype=torch.float64)
    return decay**place_L * (item_QL >= FIRST_VALUE)
