"""Metrics against explicit loops over the ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import METRICS, MISS, RankMetrics, check_metric, register, target_values
from ingest.errors import InputError

ITEMS = 5000
RANKS = st.lists(st.one_of(st.integers(0, 25), st.integers(26, ITEMS)), min_size=1, max_size=60)


def reference_value(rank: int, metric: str) -> float:
    """One target's metric, straight from its definition: a ranked list with a single relevant item."""
    name, _, cutoff = metric.partition("@")
    if rank == MISS or (cutoff and rank > int(cutoff)):
        return 0.0
    if name == "HR":
        return 1.0
    return 1.0 / math.log2(rank + 1) if name == "NDCG" else 1.0 / rank


def reference(ranks: list[int]) -> dict[str, float]:
    return {name: math.fsum(reference_value(rank, name) for rank in ranks) / len(ranks) for name in METRICS}


def accumulate(ranks: list[int]) -> RankMetrics:
    metrics = RankMetrics.of(ITEMS)
    metrics.update(np.array(ranks, dtype=np.int64))
    return metrics


def test_the_names_are_those_of_the_tables() -> None:
    assert {"HR@1", "HR@20", "NDCG@5", "NDCG@10", "MRR@10", "MRR"} <= set(METRICS)
    assert len(METRICS) == 13


@settings(deadline=None)
@given(RANKS)
def test_metrics_are_those_of_the_loop(ranks: list[int]) -> None:
    assert accumulate(ranks).compute() == pytest.approx(reference(ranks), abs=1e-12)


@settings(deadline=None)
@given(RANKS, st.sampled_from(list(METRICS)))
def test_values_of_single_targets_are_those_of_the_loop(ranks: list[int], metric: str) -> None:
    values = target_values(np.array(ranks), metric)
    assert values.tolist() == pytest.approx([reference_value(rank, metric) for rank in ranks])


@settings(deadline=None)
@given(RANKS, RANKS)
def test_added_counts_are_those_of_all_targets_to_the_last_bit(first: list[int], second: list[int]) -> None:
    added = RankMetrics(accumulate(first).counts + accumulate(second).counts)
    together = accumulate(second + first)
    assert added.targets == together.targets == len(first) + len(second)
    assert added.compute() == together.compute()


def test_known_values() -> None:
    metrics = accumulate([1, 3, 10, 11, MISS]).compute()
    assert metrics["HR@10"] == 3 / 5
    assert metrics["HR@1"] == metrics["NDCG@1"] == metrics["MRR@1"] == 1 / 5
    assert metrics["NDCG@5"] == pytest.approx((1 + 1 / 2) / 5)
    assert metrics["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 5)


def test_a_miss_counts_as_a_target_everywhere() -> None:
    metrics = accumulate([MISS, MISS])
    assert metrics.targets == 2
    assert set(metrics.compute().values()) == {0.0}


def test_an_empty_batch_changes_nothing() -> None:
    metrics = accumulate([2])
    metrics.update(np.array([], dtype=np.int64))
    assert metrics.compute() == accumulate([2]).compute()


def test_no_targets_is_an_error_and_not_nan() -> None:
    with pytest.raises(InputError, match="no targets"):
        RankMetrics.of(ITEMS).compute()


def test_a_name_that_is_none_or_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes one of HR@1, .* MRR$"):
        check_metric("HR@7")
    with pytest.raises(ValueError, match=r"metric 'MRR' of tests.* is taken by evaluation.metrics"):
        register("MRR", lambda rank_N: rank_N)
