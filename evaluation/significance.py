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

import numpy as np

from evaluation.metrics import Floats, Ints, target_values
from evaluation.results import Comparison
from ingest.errors import InputError

_BLOCK_CELLS = 2_000_000
"""Random draws held at once: 16 MB."""
MOST_DRAWS = 50_000_000
"""More than these, some seconds of work, are replaced by the normal limit."""
FEWEST_USERS = 5_000
"""With fewer users than these the limit is not used."""


def compare(
    ranks: Ints, other_ranks: Ints, metric: str, *, seed: int, users: Ints | None = None, resamples: int = 10_000
) -> Comparison:
    """Compare two models by `metric` on the same targets: the first minus the other.

    `ranks` and `other_ranks` int64 [N]: the rank of each target under either model (1-based or MISS), in the same
    order. `users` int64 [N]: whose target it is; each target is a user of its own where it is None. The result
    depends on `seed` and the ranks alone. Raises `InputError` without targets, `ValueError` for unequal lengths.
    """
    if len(ranks) != len(other_ranks) or (users is not None and len(users) != len(ranks)):
        raise ValueError(f"a paired comparison takes the same targets, got {len(ranks)} and {len(other_ranks)} ranks")
    if len(ranks) == 0:
        raise InputError("no targets were evaluated, so there is nothing to compare")
    delta = target_values(ranks, metric) - target_values(other_ranks, metric)
    sums, sizes = _by_user(delta, users)
    pairs, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    random = np.random.default_rng(seed)
    difference = float(sums.sum() / len(ranks))
    if len(counts) * resamples > MOST_DRAWS and len(sums) >= FEWEST_USERS:
        low, high, p = _normal_limit(sums, sizes, resamples)
    else:
        low, high = np.percentile(_bootstrap(pairs[0], pairs[1], counts, resamples, random), [2.5, 97.5])
        p = _randomisation(sums, resamples, random)
    return Comparison(metric=metric, difference=difference, low=float(low), high=float(high), p=p)


def _normal_limit(sums: Floats, sizes: Floats, resamples: int) -> tuple[float, float, float]:
    """What `_bootstrap` and `_randomisation` tend to with many users: the 95 % interval and p.

    The bootstrap's mean of a ratio has the variance of its linearisation, sum (s_i - d n_i)^2 / (sum n_i)^2; the
    randomised sum has mean 0 and variance sum s_i^2.
    """
    difference = sums.sum() / sizes.sum()
    deviation = math.sqrt(float(np.square(sums - difference * sizes).sum())) / sizes.sum()
    z = abs(sums.sum()) / max(math.sqrt(float(np.square(sums).sum())), 1e-300)
    p = math.erfc(z / math.sqrt(2))
    return difference - 1.959964 * deviation, difference + 1.959964 * deviation, max(p, 1 / (resamples + 1))


def _by_user(delta: Floats, users: Ints | None) -> tuple[Floats, Floats]:
    """The sum of `delta` and the number of targets, of each user."""
    if users is None:
        return delta, np.ones_like(delta)
    _, user, sizes = np.unique(users, return_inverse=True, return_counts=True)
    return np.bincount(user, weights=delta).astype(np.float64), sizes.astype(np.float64)


def _bootstrap(sums: Floats, sizes: Floats, counts: Ints, resamples: int, random: np.random.Generator) -> Floats:
    """The mean difference of a target in each resample [resamples], drawing as many users as there are."""
    means = np.empty(resamples)
    for block in _blocks(resamples, len(counts)):
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=block.stop - block.start)
        means[block] = (drawn @ sums) / (drawn @ sizes)
    return means


def _randomisation(sums: Floats, resamples: int, random: np.random.Generator) -> float:
    """How often swapping users' results at random gives a difference as large as the one seen, either way."""
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    observed = abs(sums.sum())
    tolerance = 1e-9 * float(counts @ sizes)
    extreme = 0
    for block in _blocks(resamples, len(counts)):
        kept = random.binomial(counts, 0.5, size=(block.stop - block.start, len(counts)))
        extreme += int((np.abs((2 * kept - counts) @ sizes) >= observed - tolerance).sum())
    return (extreme + 1) / (resamples + 1)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_CELLS // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
