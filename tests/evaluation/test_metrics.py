"""Metrics against explicit loops over the ranks."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import METRICS, MISS, IntentAccuracy, RankMetrics, target_values
from ingest.errors import InputError

RANKS = st.lists(st.one_of(st.integers(0, 25), st.integers(26, 10**7)), min_size=1, max_size=60)


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
    metrics = RankMetrics()
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
@given(RANKS, st.sampled_from(METRICS))
def test_values_of_single_targets_are_those_of_the_loop(ranks: list[int], metric: str) -> None:
    values = target_values(np.array(ranks), metric)
    assert values.tolist() == pytest.approx([reference_value(rank, metric) for rank in ranks])


@settings(deadline=None)
@given(RANKS, RANKS)
def test_merged_is_the_same_as_counted_together(first: list[int], second: list[int]) -> None:
    merged = accumulate(first)
    merged.merge(pickle.loads(pickle.dumps(accumulate(second))))
    reduced = RankMetrics.from_array(accumulate(first).to_array() + accumulate(second).to_array())
    together = accumulate(first + second)
    assert merged.targets == reduced.targets == together.targets == len(first) + len(second)
    assert merged.counts.tolist() == reduced.counts.tolist() == together.counts.tolist()
    assert merged.compute() == pytest.approx(together.compute(), abs=1e-12)
    assert reduced.compute() == pytest.approx(together.compute(), abs=1e-12)


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
        RankMetrics().compute()
    with pytest.raises(InputError, match="no target has a label"):
        IntentAccuracy().compute()


def test_unknown_metrics_and_broken_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="unknown metric 'HR@7'"):
        target_values(np.array([1]), "HR@7")
    with pytest.raises(ValueError, match="got -1"):
        accumulate([3, -1])
    with pytest.raises(ValueError, match="integers"):
        RankMetrics().update(np.array([1.0]))  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=4)), max_size=30))
def test_intent_accuracy_is_that_of_the_loop(rows: list[tuple[int, list[int]]]) -> None:
    accuracy = IntentAccuracy()
    lengths = [len(labels) for _, labels in rows]
    accuracy.update(
        np.array([predicted for predicted, _ in rows], dtype=np.int64),
        np.array([label for _, labels in rows for label in labels], dtype=np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    labelled = [(predicted, labels) for predicted, labels in rows if labels]
    assert accuracy.targets == len(labelled)
    assert accuracy.hits == sum(predicted in labels for predicted, labels in labelled)


def test_single_labels_need_no_offsets_and_batches_merge() -> None:
    accuracy, other = IntentAccuracy(), IntentAccuracy()
    accuracy.update(np.array([1, 2, 3]), np.array([1, 2, 2]))
    other.update(np.array([5]), np.array([4]))
    accuracy.merge(other)
    assert accuracy.compute() == 2 / 4


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        IntentAccuracy().update(np.array([1, 2]), np.array([1, 2]), np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="do not fit"):
        IntentAccuracy().update(np.array([1, 2]), np.array([1]))
