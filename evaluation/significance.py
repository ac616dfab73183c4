"""Is one model better than another, or was it luck? A paired comparison on the same targets.

The unit is the user: a user's targets are not independent of one another, so they are drawn and swapped together.
The 95 % interval is the percentile bootstrap over users; the p-value is the paired randomisation test (under the
null hypothesis the two models' results of a user can change places), two-sided, never below 1 / (resamples + 1).

Both are drawn by counts: users with the same (difference, number of targets) are exchangeable, so a resample is one
multinomial (or binomial) draw over the distinct pairs, exactly as if users were drawn one by one. With one target
a user, NDCG@10 has some hundred distinct differences: ten thousand resamples of a million users take two seconds.
Where the pairs are so many that drawing takes long (MRR over all ranks differs from user to user), both laws are
sums over thousands of users, and their normal limit with the exact variance stands for the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Floats, Ints
from evaluation.results import Comparison
from ingest.errors import InputError

_BLOCK_CELLS = 2_000_000
"""Random draws held at once: 16 MB."""
MOST_DRAWS = 50_000_000
"""More than these, some seconds of work, are replaced by the normal limit."""
FEWEST_USERS = 5_000
"""With fewer users than these the limit is not used."""


@dataclass
class Differences:
    """What a comparison needs to know of two models' users: it does not grow with them, and several add up.

    A user is a pair (s, n): the sum of the differences over the user's targets, and their number.
    """

    resamples: int
    """Of the comparison to come: what decides whether it draws."""
    moments: Floats = field(default_factory=lambda: np.zeros(6))
    """Sums over the users of 1, s, n, s^2, s n, n^2."""
    pairs: Floats = field(default_factory=lambda: np.zeros((2, 0)))
    """The distinct pairs, sorted; none where the normal limit will do."""
    counts: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """How many users have each."""

    def add(self, delta_N: Floats, user_N: Ints) -> None:
        """Count users: the difference at each target, and a number of its user, from 0; all targets of each user."""
        s, n = _by_user(delta_N, user_N)
        self._add(moments_of(delta_N, user_N), np.stack([s, n]), np.ones(len(s)))

    def merge(self, other: Differences) -> None:
        """Add the users that `other` has counted."""
        self._add(other.moments, other.pairs, other.counts)

    def _add(self, moments: Floats, pairs: Floats, counts: NDArray[Any]) -> None:
        self.moments = self.moments + moments
        together = np.concatenate([self.pairs, pairs], axis=1)
        self.pairs, place = np.unique(together, axis=1, return_inverse=True)
        weights = np.concatenate([self.counts, counts])
        self.counts = np.bincount(place.ravel(), weights, self.pairs.shape[1]).astype(np.int64)
        if self.takes_limit:
            self.pairs, self.counts = self.pairs[:, :0], self.counts[:0]

    @property
    def takes_limit(self) -> bool:
        """Whether the users and their distinct pairs are so many that the normal limit stands for the draws."""
        users = int(self.moments[0])
        return users >= FEWEST_USERS and (
            len(self.counts) * self.resamples > MOST_DRAWS or int(self.counts.sum()) < users
        )


def moments_of(delta_N: Floats, user_N: Ints) -> Floats:
    """Sums over the users of 1, s, n, s^2, s n, n^2; `user_N` as `Differences.add` takes it."""
    s, n = _by_user(delta_N, user_N)
    return np.array([len(s), *(x.sum() for x in (s, n, s * s, s * n, n * n))])


def _by_user(delta_N: Floats, user_N: Ints) -> tuple[Floats, Floats]:
    return np.bincount(user_N, weights=delta_N).astype(np.float64), np.bincount(user_N).astype(np.float64)


def normal_limit(moments: Floats, metric: str, resamples: int) -> Comparison:
    """The mean difference at a target of users with these moments, by the normal limit however few they are."""
    _, s, n, *_ = moments
    low, high, p = _normal_limit(moments, resamples)
    return Comparison(metric=metric, difference=float(s / n), low=low, high=high, p=p)


def compare(differences: Differences, metric: str, seed: int) -> Comparison:
    """The mean difference at a target with its 95 % interval and p: it depends on `seed` and the users alone.

    Raises `InputError` without targets.
    """
    _, s, n, *_ = differences.moments
    if not n:
        raise InputError("no targets were evaluated, so there is nothing to compare")
    if differences.takes_limit:
        low, high, p = _normal_limit(differences.moments, differences.resamples)
    else:
        random = np.random.default_rng(seed)
        (sums, sizes), counts, resamples = differences.pairs, differences.counts, differences.resamples
        low, high = np.percentile(_bootstrap(sums, sizes, counts, resamples, random), [2.5, 97.5])
        p = _randomisation(sums, counts, resamples, random)
    return Comparison(metric=metric, difference=float(s / n), low=float(low), high=float(high), p=p)


def _normal_limit(moments: Floats, resamples: int) -> tuple[float, float, float]:
    """What `_bootstrap` and `_randomisation` tend to with many users: the 95 % interval and p.

    The bootstrap's mean of a ratio d has the variance of its linearisation, sum (s_i - d n_i)^2 / (sum n_i)^2; the
    randomised sum has mean 0 and variance sum s_i^2.
    """
    _, s, n, ss, sn, nn = moments.tolist()
    d = s / n
    deviation = math.sqrt(max(ss - 2 * d * sn + d * d * nn, 0.0)) / n
    p = math.erfc(abs(s) / max(math.sqrt(ss), 1e-300) / math.sqrt(2))
    return d - 1.959964 * deviation, d + 1.959964 * deviation, max(p, 1 / (resamples + 1))


def _bootstrap(sums: Floats, sizes: Floats, counts: Ints, resamples: int, random: np.random.Generator) -> Floats:
    """The mean difference of a target in each resample [resamples], drawing as many users as there are."""
    means = np.empty(resamples)
    for block in _blocks(resamples, len(counts)):
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=block.stop - block.start)
        means[block] = (drawn @ sums) / (drawn @ sizes)
    return means


def _randomisation(sums: Floats, counts: Ints, resamples: int, random: np.random.Generator) -> float:
    """How often swapping users' results at random gives a difference as large as the one seen, either way."""
    observed = abs(float(sums @ counts))
    sizes, place = np.unique(np.abs(sums), return_inverse=True)
    counts = np.bincount(place, counts, len(sizes)).astype(np.int64)[sizes > 0]
    sizes = sizes[sizes > 0]
    if len(sizes) == 0:
        return 1.0
    tolerance = 1e-9 * float(counts @ sizes)
    extreme = 0
    for block in _blocks(resamples, len(counts)):
        kept = random.binomial(counts, 0.5, size=(block.stop - block.start, len(counts)))
        extreme += int((np.abs((2 * kept - counts) @ sizes) >= observed - tolerance).sum())
    return (extreme + 1) / (resamples + 1)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_CELLS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
