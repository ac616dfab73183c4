"""Ranking metrics: each is a name and a function of a target's rank, and a model's value is its mean over the targets.

A target is one held-out interaction, and its rank is the 1-based place of its item among the whole catalogue. With a
single relevant item, HR@k is [rank <= k], NDCG@k is 1 / log2(1 + rank) and MRR@k is 1 / rank, each 0 beyond k. A target
that cannot be ranked at all is 0 in every metric. `register` adds a metric, and this is the one place of their names.

    N   targets        V   rows of the item table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MISS = 0
"""The rank of a target that cannot be ranked at all (an unknown item)."""
HEADLINE = "NDCG@10"
"""The metric of the report's first sentence."""


@dataclass(frozen=True)
class Metric:
    value: Callable[[Floats], Floats]
    """Ranks of 1 or more [N] -> the metric of each such target [N]."""
    main: bool
    """Whether it stands in the table at the end of a run; all metrics stand in results.json and in the report."""


METRICS: dict[str, Metric] = {}
"""By name, in the order of the tables."""


def register(name: str, value: Callable[[Floats], Floats], main: bool = True) -> None:
    """Make a metric known. `ValueError` where a function of another module has its name."""
    known = METRICS.setdefault(name, Metric(value, main))
    if known.value.__module__ != value.__module__:
        raise ValueError(f"metric {name!r} of {value.__module__} is taken by {known.value.__module__}")


def check_metric(name: str) -> str:
    """The name itself; `ValueError` where there is no such metric."""
    if name not in METRICS:
        raise ValueError(f"takes one of {', '.join(METRICS)}")
    return name


def _hit(rank_N: Floats) -> Floats:
    return np.ones_like(rank_N)


def _gain(rank_N: Floats) -> Floats:
    return 1.0 / np.log2(1.0 + rank_N)


def _reciprocal(rank_N: Floats) -> Floats:
    return 1.0 / rank_N


def _up_to(cutoff: int, value: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda rank_N: np.where(rank_N <= cutoff, value(rank_N), 0.0)


for _name, _value, _main in (("HR", _hit, (1, 5, 10, 20)), ("NDCG", _gain, (5, 10, 20)), ("MRR", _reciprocal, ())):
    for _cutoff in (1, 5, 10, 20):
        register(f"{_name}@{_cutoff}", _up_to(_cutoff, _value), main=_cutoff in _main)
register("MRR", _reciprocal)


def target_values(ranks: Ints, metric: str) -> Floats:
    """The value of `metric` for each target alone: `ranks` int64 [N], from 1 or MISS -> float64 [N]."""
    values = np.zeros(len(ranks))
    ranked = ranks != MISS
    values[ranked] = METRICS[metric].value(ranks[ranked].astype(np.float64))
    return values


@dataclass
class RankMetrics:
    """How many targets have each rank, int64 [V + 1], misses at place `MISS`.

    Its size does not grow with the targets, several add up, and the metrics of the sum are the same to the last bit
    however the targets were spread over workers.
    """

    counts: Ints

    @classmethod
    def of(cls, items: int) -> RankMetrics:
        """Without any target yet; `items`: V."""
        return cls(np.zeros(items + 1, dtype=np.int64))

    @property
    def targets(self) -> int:
        return int(self.counts.sum())

    def update(self, ranks: Ints) -> None:
        """Count a batch: `ranks` int64 [N]."""
        np.add.at(self.counts, ranks, 1)

    def compute(self) -> dict[str, float]:
        """Each metric's mean over the targets. Raises `InputError` where there are none."""
        if not self.targets:
            raise InputError("no targets were evaluated, so there is no accuracy to report")
        ranks = np.flatnonzero(self.counts)
        return {name: float(self.counts[ranks] @ target_values(ranks, name)) / self.targets for name in METRICS}
