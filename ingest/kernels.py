"""The loops that put batches together, compiled by Numba: one pass over memory each, and other threads run meanwhile.

    R  runs: stretches of consecutive values, at `start_R` in their array, `length_R` long
    N  values of all runs, one after the other

numpy would build an index of N integers for each gather and pass over memory several times; and its short calls hold
the interpreter's lock. Compiled at first use and kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    made: Any = numba.njit(nogil=True, cache=True)(function)
    return made


@_compiled
def copy_runs(values: NDArray, start_R: NDArray, length_R: NDArray, out_N: NDArray) -> None:
    """The runs of `values` one after the other, in the type of `out_N`."""
    place = 0
    for run in range(len(start_R)):
        length = length_R[run]
        part, target = values[start_R[run] : start_R[run] + length], out_N[place : place + length]
        for k in range(length):
            target[k] = part[k]
        place += length


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
def look_up(table_V: NDArray, index_N: NDArray, out_N: NDArray) -> None:
    """The row of `table_V` at each index."""
    for n in range(len(index_N)):
        out_N[n] = table_V[index_N[n]]


@_compiled
def age_bins(
    time_N: NDArray, index_N: NDArray, since_V: NDArray, edges: NDArray, missing: int, first: int, unknown: int,
    out_N: NDArray,
) -> None:  # fmt: skip
    """The bin of time - since_V[index] among `edges`, from `first` on; `unknown` where since is `missing`."""
    for n in range(len(index_N)):
        since = since_V[index_N[n]]
        age = time_N[n] - since
        found = first
        for edge in edges:
            found += age >= edge
        out_N[n] = unknown if since == missing else found


@_compiled
def list_offsets(offsets: NDArray, index_N: NDArray, out_N1: NDArray) -> None:
    """Where each list begins when those at every index are put one after the other, and where the last ends."""
    total = 0
    out_N1[0] = 0
    for n in range(len(index_N)):
        total += offsets[index_N[n] + 1] - offsets[index_N[n]]
        out_N1[n + 1] = total


@_compiled
def take_lists(values: NDArray, offsets: NDArray, index_N: NDArray, out: NDArray) -> None:
    """The values of the lists at every index, one list after the other."""
    place = 0
    for n in range(len(index_N)):
        for k in range(offsets[index_N[n]], offsets[index_N[n] + 1]):
            out[place] = values[k]
            place += 1


@_compiled
def copy_lengths(offsets: NDArray, start_R: NDArray, length_R: NDArray, out_N: NDArray) -> None:
    """The lengths of runs of lists: of list n it is offsets[n + 1] - offsets[n]."""
    place = 0
    for run in range(len(start_R)):
        length = length_R[run]
        part, target = offsets[start_R[run] : start_R[run] + length + 1], out_N[place : place + length]
        for k in range(length):
            target[k] = part[k + 1] - part[k]
        place += length
