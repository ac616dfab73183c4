"""Ranking and intent metrics, counted up from the rank of each target.

A target is one held-out interaction, and its rank is the 1-based place of its item among the whole catalogue.
With a single relevant item, HR@k is [rank <= k], NDCG@k is 1 / log2(1 + rank) and MRR@k is 1 / rank, each 0
beyond k. The accumulators keep counts and not ranks: their size does not grow with the targets, two of them
merge by addition, and the result does not depend on how the targets were spread over workers (MRR over all
ranks, the one sum of fractions, but for its last bits).

    N   targets        R = 20   the deepest cutoff
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ingest.errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MISS = 0
"""The rank of a target that cannot be ranked at all (an unknown item): a miss at every cutoff, MRR included."""

CUTOFFS = (1, 5, 10, 20)
METRICS = (*(f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in CUTOFFS), "MRR")
"""Every metric's name, in the order of the tables."""

_DEEPEST = max(CUTOFFS)


def target_values(ranks: Ints, metric: str) -> Floats:
    """The value of `metric` for each target alone: `ranks` int64 [N] -> float64 [N]; their mean is the metric.

    Raises `InputError` for a name that is not in `METRICS`, `ValueError` for ranks that are none.
    """
    _check_ranks(ranks)
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}; allowed: {', '.join(METRICS)}")
    name, _, cutoff = metric.partition("@")
    place = np.where(ranks == MISS, np.inf, ranks.astype(np.float64))
    if cutoff:
        place[place > int(cutoff)] = np.inf
    if name == "HR":
        return np.isfinite(place).astype(np.float64)
    return np.asarray(1.0 / (np.log2(1.0 + place) if name == "NDCG" else place), dtype=np.float64)


@dataclass
class RankMetrics:
    """HR, NDCG and MRR at `CUTOFFS` and MRR over all ranks, counted over batches of targets.

    `counts` int64 [R + 1] holds how many targets have rank r; place 0 all the others, misses included.
    """

    counts: Ints = field(default_factory=lambda: np.zeros(_DEEPEST + 1, dtype=np.int64))
    reciprocal_sum: float = 0.0

    @property
    def targets(self) -> int:
        """The number of targets counted so far, misses included."""
        return int(self.counts.sum())

    def update(self, ranks: Ints) -> None:
        """Count a batch: `ranks` int64 [N], 1-based, or `MISS`. An empty batch changes nothing."""
        _check_ranks(ranks)
        self.counts += np.bincount(np.where(ranks > _DEEPEST, 0, ranks), minlength=_DEEPEST + 1)
        self.reciprocal_sum += float((1.0 / ranks[ranks != MISS]).sum())

    def merge(self, other: RankMetrics) -> None:
        """Add the targets that `other` has counted."""
        self.counts += other.counts
        self.reciprocal_sum += other.reciprocal_sum

    def to_array(self) -> Floats:
        """The whole state as float64 [R + 2]: arrays of several workers add up (an all-reduce) to their merger."""
        return np.append(self.counts.astype(np.float64), self.reciprocal_sum)

    @classmethod
    def from_array(cls, state: Floats) -> RankMetrics:
        """The accumulator that `to_array` described."""
        return cls(np.rint(state[:-1]).astype(np.int64), float(state[-1]))

    def compute(self) -> dict[str, float]:
        """Each name of `METRICS` with its mean over the targets. Raises `InputError` where there are none."""
        if not self.targets:
            raise InputError("no targets were evaluated, so there is no accuracy to report")
        ranks = np.arange(_DEEPEST + 1)
        means = {name: float(self.counts @ target_values(ranks, name)) / self.targets for name in METRICS}
        means["MRR"] = self.reciprocal_sum / self.targets
        return means


@dataclass
class IntentAccuracy:
    """Accuracy@1 of one intent: how often the most probable label is one of the target's true labels.

    A target without a true label says nothing about this intent and is not counted.
    """

    hits: int = 0
    targets: int = 0

    def update(self, predicted: Ints, labels: Ints, offsets: Ints | None = None) -> None:
        """Count a batch: `predicted` int64 [N], the most probable label of each target.

        `labels` int64 are the true ones: [N], or, with `offsets` int64 [N + 1], jagged: those of target n are
        labels[offsets[n] : offsets[n + 1]], without padding. Raises `ValueError` where the lengths do not fit.
        """
        if offsets is None:
            offsets = np.arange(len(labels) + 1)
        if len(offsets) != len(predicted) + 1 or offsets[0] != 0 or offsets[-1] != len(labels):
            raise ValueError(f"{len(predicted)} predictions, {len(labels)} labels and the offsets do not fit together")
        target = np.repeat(np.arange(len(predicted)), np.diff(offsets))
        self.hits += len(np.unique(target[labels == predicted[target]]))
        self.targets += int((np.diff(offsets) > 0).sum())

    def merge(self, other: IntentAccuracy) -> None:
        """Add the targets that `other` has counted."""
        self.hits += other.hits
        self.targets += other.targets

    def compute(self) -> float:
        """The accuracy, 0 to 1. Raises `InputError` where no target had a label."""
        if not self.targets:
            raise InputError("no target has a label of this intent, so there is no accuracy to report")
        return self.hits / self.targets


def _check_ranks(ranks: Ints) -> None:
    if ranks.ndim != 1 or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(f"ranks are integers in one dimension, got {ranks.dtype} in {ranks.ndim}")
    if ranks.size and ranks.min() < 0:
        raise ValueError(f"ranks are 1 or more, or MISS = {MISS}, got {ranks.min()}")
