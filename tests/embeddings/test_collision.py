"""Managed collision: who holds rows against counting in plain Python, and a run that stops and goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embeddings.collision import Collisions
from embeddings.table_config import CollisionConfig, TableConfig, table_of
from embeddings.workers import Worker
from ingest.errors import InputError
from ingest.settings import build_settings
from tests.small import Data, make_step, same, train_config, weights
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress

pytestmark = pytest.mark.usefixtures("alone")
ROUNDS = [{2: 8, 3: 7, 4: 6, 5: 5, 6: 4}, {9: 20, 4: 3}, {}, {5: 30, 7: 2}]
"""How often each value is seen in four steps: the distinct counts of a value add up while it holds a row."""


def made(eviction: str, interval: int = 1) -> tuple[Collisions, list[Tensor]]:
    resets: list[Tensor] = []
    config = {"genres": CollisionConfig.model_validate({"size": 4, "eviction": eviction, "interval": interval})}
    collisions = Collisions(config, 8, 0.1, 0)
    collisions.place(torch.device("cpu"), lambda table, row_N, values_ND: resets.append(row_N))
    return collisions, resets


def held(collisions: Collisions) -> dict[int, int]:
    """Row of each value that holds one of its own, by value."""
    rows = collisions.rows("genres", torch.arange(2, 12), training=False).tolist()
    return {value: row for value, row in enumerate(rows, start=2) if row != 3}


def test_the_most_frequent_values_hold_the_rows() -> None:
    collisions, resets = made("lfu")
    counts: Counter[int] = Counter()
    for seen in ROUNDS:
        before = held(collisions)
        ids = torch.tensor([value for value, count in seen.items() for _ in range(count)], dtype=torch.int64)
        rows = collisions.rows("genres", ids, training=True)
        counts = Counter({value: count for value, count in counts.items() if value in before}) + Counter(seen)
        expected = {value for value, _ in counts.most_common(3)}
        after = held(collisions)
        assert set(after) == expected
        assert sorted(after.values()) == [0, 1, 2]
        assert rows.tolist() == [after.get(value, 3) for value in ids.tolist()]
        came = {row for value, row in after.items() if before.get(value) != row}
        fresh = set(resets.pop().tolist()) if resets else set()
        assert fresh == came
    assert set(held(collisions)) == {5, 9, 4}


def test_the_longest_unseen_gives_way() -> None:
    collisions, _ = made("lru")
    for ids in ([2, 3, 4], [2, 4], [2], [7]):
        collisions.rows("genres", torch.tensor(ids), training=True)
    assert set(held(collisions)) == {2, 4, 7}


def test_nothing_seen_is_dropped_after_an_empty_first_batch() -> None:
    """TorchRec makes room for the first batch's number of values times the interval."""
    collisions, _ = made("lfu", interval=3)
    for ids in ([], [5] * 3000, [6] * 4000):
        collisions.rows("genres", torch.tensor(ids, dtype=torch.int64), training=True)
    module = collisions.modules["genres"]
    assert set(held(collisions)) == {5, 6}
    kept = {int(i): int(c) for i, c in zip(module._mch_sorted_raw_ids, module._mch_counts, strict=True)}
    assert (kept[5], kept[6]) == (3000, 4000)


def take(step: Any, data: Data, number: int) -> None:
    batch = data.batch(range(6 * number, 6 * number + 6))
    step.train(batch, number, step.weights_of(batch).tolist())


@pytest.mark.parametrize("eviction", ["lfu", "lru", "distance_lfu"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(eviction: str, data: Data, tmp_path: Path) -> None:
    """A checkpoint between two evictions: what has been seen since the last one comes along."""
    zch = {"genres": {"size": 4, "interval": 3, "eviction": eviction}}
    step = make_step(data.manifest, tables={"zch": zch})
    checkpoints = Checkpoints(str(tmp_path), train_config(), Worker())
    begin = weights(step)
    for number in range(4):
        take(step, data, number)
    checkpoints.save(step, Progress(step=4), {})
    checkpoints.wait()
    again = make_step(data.manifest, tables={"zch": zch})
    checkpoints.load(again, "step-0000000004")
    for number in range(4, 8):
        take(step, data, number)
        take(again, data, number)
        same(weights(again), weights(step))
    ids = torch.arange(8)
    rows = [s.recommender.tables.collisions.rows("genres", ids, False) for s in (step, again)]
    assert torch.equal(*rows)
    assert len(rows[0].unique()) == 4
    assert not torch.equal(weights(step)["genres"], begin["genres"])


def test_a_row_that_changes_hands_is_fresh_and_without_optimizer_state(data: Data) -> None:
    zch = {"genres": {"size": 4, "interval": 100}}
    step = make_step(data.manifest, tables={"zch": zch, "optimizer": "rowwise_adagrad"})
    for number in range(3):
        take(step, data, number)
    collisions = step.recommender.tables.collisions
    fresh = torch.full((1, 8), 0.25)
    collisions.reset("genres", torch.tensor([3]), fresh)
    assert torch.equal(weights(step)["genres"][3], fresh[0])
    states = step.parallel.fused_optimizer.state_dict()["state"]
    (state,) = (value for name, value in states.items() if table_of(name) == "genres")
    (sums,) = (value for value in state.values() if hasattr(value, "local_shards"))
    assert sums.local_shards()[0].tensor.flatten()[3] == 0


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"zch": {"item": {"size": 9}}}, "the item table's rows are the output layer"),
        ({"zch": {"genres": {"size": 9}}, "sharding": {"genres": "column_wise"}}, "with zch it takes row_wise"),
        (
            {"zch": {"genres": {"size": 9}}, "kernel": {"genres": "fused_uvm_caching"}},
            "kernel of 'genres': with zch it takes fused or fused_uvm, got fused_uvm_caching",
        ),
        ({"zch": {"genres": {"size": 1}}}, "zch.genres.size: .* greater than or equal to 2"),
    ],
)
def test_what_zch_can_not_do_is_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_settings(TableConfig, tables, "config")


def test_a_feature_that_is_not_there_is_refused(data: Data) -> None:
    with pytest.raises(InputError, match=r"tables\.zch: no table 'genre'; allowed: item, action"):
        make_step(data.manifest, tables={"zch": {"genre": {"size": 9}}})
