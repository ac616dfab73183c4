"""The paired comparison against brute force, enumeration and what theory knows of it."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from evaluation.metrics import METRICS, MISS, Ints, target_values
from evaluation.results import Comparison
from evaluation.significance import Differences
from evaluation.significance import compare as compare_differences
from ingest.errors import InputError


def compare(
    first: Ints,
    second: Ints,
    metric: str,
    *,
    seed: int,
    users: Ints | None = None,
    resamples: int = 10_000,
    parts: int = 1,
) -> Comparison:
    """Two models by their ranks, counted in `parts` parts of the users; without `users` each target has its own."""

    delta = target_values(first, metric) - target_values(second, metric)
    user = np.unique(np.arange(len(first)) if users is None else users, return_inverse=True)[1]
    together = Differences(resamples)
    for part in range(parts):
        differences, chosen = Differences(resamples), user % parts == part
        differences.add(delta[chosen], user[chosen] // parts)
        together.merge(differences)
    return compare_differences(together, metric, seed)


def random_ranks(seed: int, size: int, deepest: int = 40) -> Ints:
    return np.random.default_rng(seed).integers(0, deepest, size)


def exact_p(sums: list[float]) -> float:
    """The randomisation test by enumeration of all sign patterns."""
    observed = abs(math.fsum(sums))
    patterns = list(itertools.product((-1, 1), repeat=len(sums)))
    extreme = sum(abs(math.fsum(s * d for s, d in zip(p, sums, strict=True))) >= observed - 1e-9 for p in patterns)
    return extreme / len(patterns)


@pytest.mark.parametrize("metric", METRICS)
def test_the_difference_is_that_of_the_means(metric: str) -> None:
    first, second = random_ranks(1, 300), random_ranks(2, 300)
    result = compare(first, second, metric, seed=0, resamples=500)
    assert result.difference == pytest.approx(
        target_values(first, metric).mean() - target_values(second, metric).mean()
    )
    assert result.low <= result.difference <= result.high


@pytest.mark.parametrize("metric", ["NDCG@10", "MRR", "HR@5"])
def test_the_p_value_is_that_of_all_sign_patterns(metric: str) -> None:
    first = np.array([1, 2, 1, 4, 7, MISS, 3, 1, 12, 2, 5, 1])
    second = np.array([3, 2, 5, 4, 9, 2, 30, 6, MISS, 1, 8, 2])
    expected = exact_p(list(target_values(first, metric) - target_values(second, metric)))
    assert compare(first, second, metric, seed=3, resamples=40_000).p == pytest.approx(expected, abs=0.01)


def test_the_interval_is_that_of_drawing_users_one_by_one() -> None:
    first, second, users = random_ranks(1, 400, 20), random_ranks(2, 400, 20), random_ranks(3, 400, 90)
    delta = target_values(first, "NDCG@10") - target_values(second, "NDCG@10")
    random, means = np.random.default_rng(5), []
    groups = [delta[users == user] for user in np.unique(users)]
    for _ in range(4000):
        drawn = np.concatenate([groups[i] for i in random.integers(0, len(groups), len(groups))])
        means.append(drawn.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    result = compare(first, second, "NDCG@10", seed=7, users=users)
    assert result.low == pytest.approx(low, abs=0.004)
    assert result.high == pytest.approx(high, abs=0.004)


def test_the_p_value_swaps_whole_users() -> None:
    users = np.repeat(np.arange(9), 4)
    first, second = random_ranks(8, 36, 12), random_ranks(9, 36, 15)
    delta = target_values(first, "MRR") - target_values(second, "MRR")
    expected = exact_p([float(delta[users == user].sum()) for user in range(9)])
    assert compare(first, second, "MRR", seed=1, users=users, resamples=40_000).p == pytest.approx(expected, abs=0.01)


def test_the_interval_has_the_width_of_the_normal_law() -> None:
    first, second = random_ranks(1, 5000), random_ranks(2, 5000)
    delta = target_values(first, "NDCG@10") - target_values(second, "NDCG@10")
    result = compare(first, second, "NDCG@10", seed=0)
    expected = 2 * 1.96 * delta.std() / math.sqrt(5000)
    assert result.high - result.low == pytest.approx(expected, rel=0.05)


def test_p_is_uniform_where_the_models_are_equal() -> None:
    ps = np.array(
        [compare(random_ranks(s, 400), random_ranks(s + 999, 400), "MRR", seed=s, resamples=400).p for s in range(150)]
    )
    assert 0.01 <= (ps < 0.05).mean() <= 0.11
    assert ps.mean() == pytest.approx(0.5, abs=0.08)


def test_a_clear_difference_is_significant_and_swapping_turns_its_sign() -> None:
    better, worse = random_ranks(1, 2000, 15), random_ranks(2, 2000, 60)
    result, swapped = compare(better, worse, "HR@10", seed=0), compare(worse, better, "HR@10", seed=0)
    assert result.low > 0
    assert result.p == pytest.approx(1 / 10_001)
    assert swapped.difference == -result.difference
    assert swapped.high < 0


def test_equal_models_have_no_difference() -> None:
    ranks = random_ranks(4, 100)
    result = compare(ranks, ranks, "MRR", seed=0)
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)


def test_the_seed_decides() -> None:
    first, second = random_ranks(1, 200), random_ranks(2, 200)
    assert compare(first, second, "MRR", seed=4) == compare(first, second, "MRR", seed=4)
    assert compare(first, second, "MRR", seed=4) != compare(first, second, "MRR", seed=5)


@pytest.mark.parametrize("parts", [2, 7])
@pytest.mark.parametrize(("deepest", "users"), [(12, 150), (10**6, 9000)])
def test_counting_in_parts_changes_nothing(parts: int, deepest: int, users: int) -> None:
    """Where resamples are drawn, and where the normal limit stands for them."""
    first, second = random_ranks(1, 2 * users, deepest), random_ranks(2, 2 * users, deepest)
    user = np.random.default_rng(3).integers(0, users, 2 * users)
    arguments = {"metric": "MRR", "seed": 2, "users": user}
    whole, merged = compare(first, second, **arguments), compare(first, second, **arguments, parts=parts)
    for name in ("difference", "low", "high", "p"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-15)


def test_what_is_kept_of_users_does_not_grow_with_them() -> None:
    differences = Differences(10_000)
    for part in range(30):
        first, second = random_ranks(part, 1000, 10**7), random_ranks(part + 99, 1000, 10**7)
        differences.add(target_values(first, "MRR") - target_values(second, "MRR"), np.arange(1000))
        assert len(differences.counts) <= 5000
    assert differences.moments[0] == 30_000


def test_memory_is_bounded_where_every_user_differs() -> None:
    first, second = random_ranks(1, 20_000, 10**7), random_ranks(2, 20_000, 10**7)
    tracemalloc.start()
    compare(first, second, "MRR", seed=0, resamples=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


@pytest.mark.parametrize("shift", [0.0, 0.004, 0.02])
def test_with_many_users_the_normal_limit_is_what_drawing_gives(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """Users with 1 to 4 targets, hardly two with the same difference; p from far to clear."""
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(6000), random.integers(1, 5, 6000))
    first = random.integers(1, 3000, len(users))
    second = np.where(random.random(len(users)) < shift, 1, np.maximum(first + random.integers(-30, 31, len(users)), 1))
    limit = compare(first, second, "MRR", seed=0, users=users)
    monkeypatch.setattr("evaluation.significance.MOST_DRAWS", 10**12)
    drawn = compare(first, second, "MRR", seed=0, users=users, resamples=4000)
    width = drawn.high - drawn.low
    assert limit.difference == drawn.difference
    assert limit.low == pytest.approx(drawn.low, abs=0.05 * width)
    assert limit.high == pytest.approx(drawn.high, abs=0.05 * width)
    assert limit.p == pytest.approx(drawn.p, abs=0.03)


def test_what_cannot_be_compared_is_refused() -> None:
    empty = np.array([], dtype=np.int64)
    with pytest.raises(InputError, match="no targets"):
        compare(empty, empty, "MRR", seed=0)


@pytest.mark.parametrize("users", [1, 3])
def test_few_users_that_agree_are_no_verdict(users: int) -> None:
    """Their interval has next to no width, but as few signs are all alike by chance."""
    found = compare(np.full(users, 1), np.full(users, 3), "MRR", seed=0, resamples=1000)
    assert found.low > 0
    assert found.p > 0.2
    assert found.verdict == "even"
