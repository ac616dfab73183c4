"""The baselines against counting in dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings.workers import Worker
from evaluation.slices import CatalogueSlice
from tests.evaluation.cases import CASES
from tests.evaluation.references import REFERENCES, Log, rank
from tests.evaluation.scenarios import baselines, kinds
from tests.scenarios import TwoWorkers
from tests.small import Data, one_process

pytestmark = pytest.mark.usefixtures("alone")


def slices(data: Data, two_workers: TwoWorkers, which: int) -> list[np.ndarray]:
    """Scores of all items on one worker, and put together from two."""
    parts = two_workers.result("baselines")
    together = np.concatenate([part[which] for part in parts], axis=1)[:, order_of(data)]
    return [baselines(data, Path(), Worker())[which], together]


def order_of(data: Data) -> np.ndarray:
    """The place of each item among the columns of two workers, one behind the other."""
    manifest = data.manifest
    rows = [CatalogueSlice(manifest.items, manifest.catalogue, Worker(rank, 2)).rows.numpy() for rank in (0, 1)]
    return np.argsort(np.concatenate(rows))


def test_popularity_is_the_count_in_training(data: Data, two_workers: TwoWorkers) -> None:
    items, _ = Log(data).counted
    for scores in slices(data, two_workers, 0):
        assert scores.shape == (data.manifest.catalogue, data.manifest.catalogue)
        for item in range(2, data.manifest.catalogue):
            assert set(scores[:, item]) == {items[item]}


def test_markov_orders_by_what_followed_and_then_by_popularity(data: Data, two_workers: TwoWorkers) -> None:
    items, pairs = Log(data).counted
    known = range(2, data.manifest.catalogue)
    for scores in slices(data, two_workers, 1):
        for last in known:
            ours = np.round(scores[last, 2:] - np.array([items[item] for item in known]) / (items.total() + 1), 9)
            assert ours.tolist() == [pairs[last, item] for item in known]
            order = sorted(known, key=lambda item, last=last: (-pairs[last, item], -items[item]))
            assert [(pairs[last, i], items[i]) for i in 2 + np.argsort(-scores[last, 2:])] == [
                (pairs[last, i], items[i]) for i in order
            ]
        np.testing.assert_array_equal(scores[1, 2:], scores[0, 2:])


@pytest.fixture(scope="module")
def in_time(prepared: dict[str, str]) -> Data:
    return Data(prepared["in time"])


@pytest.fixture(scope="module")
def log(in_time: Data) -> Log:
    return Log(in_time)


@pytest.fixture(scope="module")
def found(in_time: Data) -> dict[str, Any]:
    """The scores of every case on one worker."""
    with one_process():
        return kinds(in_time, Path(), Worker())


@pytest.mark.parametrize("case", CASES)
def test_every_item_has_the_place_that_plain_counting_gives_it(log: Log, found: dict[str, Any], case: str) -> None:
    settings = {key: value for key, value in CASES[case].items() if key != "kind"}
    reference = REFERENCES[CASES[case]["kind"]](log, **settings)
    targets, scores, ranks = found[case]
    expected_ranks = np.zeros_like(ranks)
    assert len(targets) == len(log.targets) > 100
    for row, key in enumerate(targets):
        target = log.targets[key]
        expected, ours = reference(target), np.round(scores[row], 9)
        places = {item: int((ours[2:] >= ours[item]).sum()) for item in log.items}
        assert places == {item: rank(expected, item) for item in log.items}
        expected_ranks[rank(expected, target.item)] += 1
    np.testing.assert_array_equal(ranks, expected_ranks)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_score_as_one(in_time: Data, found: dict[str, Any], two_workers: TwoWorkers, case: str) -> None:
    targets, scores, ranks = found[case]
    parts = [part[case] for part in two_workers.result("kinds")]
    together = np.concatenate([part[1] for part in parts], axis=1)[:, order_of(in_time)]
    np.testing.assert_array_equal(together[:, 2:], scores[:, 2:])
    for part in parts:
        assert part[0] == targets
        np.testing.assert_array_equal(part[2], ranks)
