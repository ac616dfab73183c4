"""The loops that put batches together, compiled by Numba: one pass over memory each, and other threads run meanwhile.

    B  sequences: the `tokens` interactions from `start` on are inputs, the `targets` ones from `first` on are to be
       predicted; first <= start + tokens, and most interactions are both
    T  tokens of all sequences        Q  targets of all sequences        V  rows of the item table

numpy would build an index of T integers for each gather and pass over memory several times; and its short calls hold
the interpreter's lock. Compiled at first use and kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
COPIED = 4
"""Values that `split_item_lists` copies at once: arrays of lists' values have so many to spare at their ends."""


def _compiled(function: F) -> F:
    made: Any = numba.njit(nogil=True, cache=True)(function)
    return made


@_compiled
def count_up(first_R: NDArray, length_R: NDArray, out_N: NDArray) -> None:
    """first, first + 1, ... for every run."""
    place = 0
    for run in range(len(length_R)):
        length, first = length_R[run], first_R[run]
        target = out_N[place : place + length]
        for k in range(length):
            target[k] = first + k
        place += length


@_compiled
def cut(size_R: NDArray, limit: int, bounds_R1: NDArray) -> int:
    """Bounds of consecutive intervals that sum to `limit` at most, or hold a single one that is larger; their number,
    which is one more than that of the intervals."""
    found, total = 1, 0
    bounds_R1[0] = 0
    for r in range(len(size_R)):
        if bounds_R1[found - 1] < r and total + size_R[r] > limit:
            bounds_R1[found] = r
            found += 1
            total = 0
        total += size_R[r]
    if len(size_R):
        bounds_R1[found] = len(size_R)
        found += 1
    return found


@_compiled
def split(
    values: NDArray, start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray,
    out_T: NDArray, out_Q: NDArray,
) -> None:  # fmt: skip
    """The values of the tokens and those of the targets, in the types of the outputs."""
    t, q = 0, 0
    for b in range(len(start_B)):
        tokens, targets = tokens_B[b], targets_B[b]
        part, out = values[start_B[b] : start_B[b] + tokens], out_T[t : t + tokens]
        for k in range(tokens):
            out[k] = part[k]
        part, out = values[first_B[b] : first_B[b] + targets], out_Q[q : q + targets]
        for k in range(targets):
            out[k] = part[k]
        t += tokens
        q += targets


@_compiled
def split_lengths(
    offsets: NDArray, start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray,
    out_T: NDArray, out_Q: NDArray,
) -> None:  # fmt: skip
    """The lengths of lists, that of list n being offsets[n + 1] - offsets[n]."""
    t, q = 0, 0
    for b in range(len(start_B)):
        tokens, targets = tokens_B[b], targets_B[b]
        part, out = offsets[start_B[b] : start_B[b] + tokens + 1], out_T[t : t + tokens]
        for k in range(tokens):
            out[k] = part[k + 1] - part[k]
        part, out = offsets[first_B[b] : first_B[b] + targets + 1], out_Q[q : q + targets]
        for k in range(targets):
            out[k] = part[k + 1] - part[k]
        t += tokens
        q += targets


@_compiled
def split_attribute(
    table_V: NDArray, item: NDArray, start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray,
    out_T: NDArray, out_Q: NDArray,
) -> None:  # fmt: skip
    """The row of `table_V` of every item."""
    t, q = 0, 0
    for b in range(len(start_B)):
        start, tokens, first, targets = start_B[b], tokens_B[b], first_B[b], targets_B[b]
        items, out = item[start : start + tokens], out_T[t : t + tokens]
        for k in range(tokens):
            out[k] = table_V[items[k]]
        both = min(targets, start + tokens - first)
        found = out_Q[q : q + targets]
        found[:both] = out[first - start : first - start + both]
        for k in range(both, targets):
            found[k] = table_V[item[first + k]]
        t += tokens
        q += targets


@_compiled
def _age_bins(
    time_N: NDArray, item_N: NDArray, since_V: NDArray, edges: NDArray, missing: int, first: int, unknown: int,
    age_N: NDArray, out_N: NDArray,
) -> None:  # fmt: skip
    """`missing` is below all edges; `age_N` has room for the ages."""
    for n in range(len(item_N)):
        since = since_V[item_N[n]]
        age_N[n] = missing if since == missing else time_N[n] - since
        out_N[n] = unknown if since == missing else first
    for edge in edges:
        for n in range(len(item_N)):
            out_N[n] += age_N[n] >= edge


@_compiled
def split_ages(
    time: NDArray, item: NDArray, since_V: NDArray, edges: NDArray, missing: int, first_bin: int, unknown: int,
    start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray, out_T: NDArray, out_Q: NDArray,
) -> None:  # fmt: skip
    """The bin of time - since_V[item] among `edges`, from `first_bin` on; `unknown` where since is `missing`."""
    longest = 0
    for b in range(len(start_B)):
        longest = max(longest, tokens_B[b], targets_B[b])
    bins = since_V, edges, missing, first_bin, unknown, np.empty(longest, np.int64)
    t, q = 0, 0
    for b in range(len(start_B)):
        start, end, first, targets = start_B[b], start_B[b] + tokens_B[b], first_B[b], targets_B[b]
        out, found = out_T[t : t + tokens_B[b]], out_Q[q : q + targets]
        _age_bins(time[start:end], item[start:end], *bins, out)
        both = min(targets, end - first)
        found[:both] = out[first - start : first - start + both]
        if both < targets:
            _age_bins(time[first + both : first + targets], item[first + both : first + targets], *bins, found[both:])
        t += tokens_B[b]
        q += targets


@_compiled
def split_item_lengths(
    offsets_V1: NDArray, item: NDArray, start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray,
    out_T: NDArray, out_Q: NDArray,
) -> None:  # fmt: skip
    """The length of every item's list."""
    t, q = 0, 0
    for b in range(len(start_B)):
        start, tokens, first, targets = start_B[b], tokens_B[b], first_B[b], targets_B[b]
        items, out = item[start : start + tokens], out_T[t : t + tokens]
        for k in range(tokens):
            out[k] = offsets_V1[items[k] + 1] - offsets_V1[items[k]]
        both = min(targets, start + tokens - first)
        found = out_Q[q : q + targets]
        found[:both] = out[first - start : first - start + both]
        for k in range(both, targets):
            found[k] = offsets_V1[item[first + k] + 1] - offsets_V1[item[first + k]]
        t += tokens
        q += targets


@_compiled
def _copy_lists(values: NDArray, offsets_V1: NDArray, item_N: NDArray, out: NDArray, place: int) -> int:
    """The lists at every index go to `out` from `place` on; gives the place after them.

    `COPIED` values go at once, whatever a list's length: most lists are short, and their lengths are hard to predict.
    """
    for n in range(len(item_N)):
        begin, length = offsets_V1[item_N[n]], offsets_V1[item_N[n] + 1] - offsets_V1[item_N[n]]
        for k in range(COPIED):
            out[place + k] = values[begin + k]
        for k in range(COPIED, length):
            out[place + k] = values[begin + k]
        place += length
    return place


@_compiled
def split_item_lists(
    values: NDArray, offsets_V1: NDArray, item: NDArray,
    start_B: NDArray, tokens_B: NDArray, first_B: NDArray, targets_B: NDArray, out: NDArray, target_out: NDArray,
) -> None:  # fmt: skip
    """The values of every item's list, one list after the other; all arrays of values have `COPIED` to spare."""
    place, target_place = 0, 0
    for b in range(len(start_B)):
        end, first, after = start_B[b] + tokens_B[b], first_B[b], first_B[b] + targets_B[b]
        shared = _copy_lists(values, offsets_V1, item[start_B[b] : min(first, end)], out, place)
        place = _copy_lists(values, offsets_V1, item[min(first, end) : end], out, shared)
        if targets_B[b]:
            both = place - shared
            target_out[target_place : target_place + both] = out[shared:place]
            target_place = _copy_lists(values, offsets_V1, item[end:after], target_out, target_place + both)
