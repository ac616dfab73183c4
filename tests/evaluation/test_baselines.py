"""Popularity and Markov against counting in dicts."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embeddings.workers import Worker
from tests.evaluation.scenarios import baselines
from tests.scenarios import TwoWorkers
from tests.small import Data

pytestmark = pytest.mark.usefixtures("alone")


def counted(data: Data) -> tuple[Counter[int], Counter[tuple[int, int]]]:
    """Items and pairs of items that follow each other in training: its rows, and users with a single event."""
    items: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for split in ("train", "rest"):
        for shard in data.manifest.shards[split]:
            for row in pq.read_table(Path(data.url) / shard.path, columns=["item"])["item"].to_pylist():
                if split == "train" or len(row) == 1:
                    items.update(row)
                    pairs.update(itertools.pairwise(row))
    return items, pairs


def slices(data: Data, two_workers: TwoWorkers, which: int) -> list[np.ndarray]:
    """Scores of all items on one worker, and put together from two."""
    parts = two_workers.result("baselines")
    return [baselines(data, Path(), Worker())[which], np.concatenate([part[which] for part in parts], axis=1)]


def test_popularity_is_the_count_in_training(data: Data, two_workers: TwoWorkers) -> None:
    items, _ = counted(data)
    for scores in slices(data, two_workers, 0):
        assert scores.shape == (data.manifest.catalogue, data.manifest.catalogue)
        for item in range(2, data.manifest.catalogue):
            assert set(scores[:, item]) == {items[item]}


def test_markov_orders_by_what_followed_and_then_by_popularity(data: Data, two_workers: TwoWorkers) -> None:
    items, pairs = counted(data)
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
