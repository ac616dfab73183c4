"""The targets' files are the same however users come in batches: a long user's parts stay together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import evaluation.parquet
from embeddings.workers import Worker
from evaluation.parquet import part, part_writer
from evaluation.targets import TargetWriter
from evaluation.vocabulary import values
from tests.small import Data


def written(data: Data, url: str, tokens: int, max_length: int) -> list[pa.Table]:
    """The row groups of the test split's targets, each ranked at its place."""
    reader = data.reader("test", evaluate=True, tokens=tokens, max_length=max_length, shuffle_buffer=10**9)
    with part_writer(url, Worker()) as file:
        ids, user = values(data.url, "item"), reader.source.user_type()
        writer = TargetWriter(file, data.manifest, user, ids, data.items.counts, session=1000)
        for batch, _ in reader.epoch(0):
            assert batch.target_place_Q is not None
            writer.add(batch, batch.target_place_Q.numpy(), {})
    found = pq.ParquetFile(part(url, 0))
    return [found.read_row_group(group) for group in range(found.num_row_groups)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_user_in_parts_is_one_user(
    prepared: dict[str, str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation.parquet, "ROW_GROUP", size)
    data = Data(prepared["in time"])
    whole, parts = (written(data, str(tmp_path / f"{tokens}"), tokens, 2) for tokens in (10**6, 1))
    assert len(whole) > 3
    assert [table.to_pydict() for table in parts] == [table.to_pydict() for table in whole]
    users = [table["user"].to_pylist() for table in parts]
    assert max(np.unique(group, return_counts=True)[1].max() for group in users) > 4, "nobody comes in parts"
    assert all(len(set(group)) <= size for group in users)
    for before, after in pairwise(users):
        assert not set(before) & set(after)
    for table in parts:
        places = dict[object, int]()
        for user, place in zip(table["user"].to_pylist(), table["place"].to_pylist(), strict=True):
            assert places.get(user, -1) < place
            places[user] = place
