"""Inputs that become unknown in training, so that the rows for unknown values are trained.

A value that training never saw is looked up in its table's row for unknown values, which training data without such
values would leave as it was drawn. So a small share of the inputs is unknown in each step: an item and its attributes
together, as those of an item that nobody has seen; event features, and values of lists, each for itself. Targets and
labels stay.

Which inputs is decided by a hash of (seed, step, interaction) instead of a generator: it is the same on any number of
workers and after a resume, and costs some ten passes over the batch's integers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from ingest.data.batch import Batch, Lists
from ingest.features.feature import FIRST_VALUE, UNKNOWN

_GOLDEN = 0x9E3779B97F4A7C15


def with_unknowns(batch: Batch, share: float, attributes: Collection[str], seed: int, step: int) -> Batch:
    """`batch` with about `share` of its inputs unknown. `attributes`: the features that are the items' own."""
    if not share:
        return batch
    item_T = hash_of(batch, seed, step)
    features: dict[str, Tensor | Lists] = {}
    for number, (name, value) in enumerate(batch.features.items(), 1):
        if isinstance(value, Lists):
            own_N = item_T.repeat_interleave(value.lengths, output_size=len(value.values)) + value.values * number
            features[name] = replace(value, values=_unknown(value.values, _mixed(own_N), share))
        elif value.is_floating_point():
            features[name] = value
        else:
            own_T = item_T if name in attributes else _mixed(item_T + number)
            features[name] = _unknown(value, own_T, share)
    return replace(batch, item_T=_unknown(batch.item_T, item_T, share), true_item_T=batch.item_T, features=features)


def hash_of(batch: Batch, seed: int, step: int) -> Tensor:
    """A hash of each interaction in step `step`, [T]."""
    start_T = _mixed(batch.time_T + _start(seed, step))
    return _mixed(start_T + batch.item_T * _signed(_GOLDEN) + batch.position_T)


def chosen(item_N: Tensor, share: float, seed: int, step: int) -> Tensor:
    """About `share` of all items, the same ones wherever they are in step `step`: bool [N]."""
    return lowest(_mixed(_mixed(item_N + _start(seed, step))), share)


def _start(seed: int, step: int) -> int:
    return _signed((seed * 1_000_003 + step) * _GOLDEN)


def lowest(hash_N: Tensor, share: float) -> Tensor:
    """Whether a hash is in the lowest `share` of all numbers."""
    return hash_N < _signed(round(share * 2**64) - 2**63)


def _unknown(index_N: Tensor, hash_N: Tensor, share: float) -> Tensor:
    """The indices, but `UNKNOWN` where a known value's hash is in the lowest `share` of all numbers."""
    return index_N.masked_fill(lowest(hash_N, share) & (index_N >= FIRST_VALUE), UNKNOWN)


def _mixed(hash_N: Tensor) -> Tensor:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit depends on all."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        high_N = (hash_N >> shift).bitwise_and_(2 ** (64 - shift) - 1)
        hash_N = high_N.bitwise_xor_(hash_N).mul_(_signed(factor))
    return hash_N


def _signed(value: int) -> int:
    """The 64-bit integer of these bits, as torch takes it."""
    return (value + 2**63) % 2**64 - 2**63
