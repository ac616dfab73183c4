"""What the sharded tables give, against plain indexing of their weights."""

from __future__ import annotations

import pytest
import torch

from ingest.data.batch import Lists
from tests.small import Data, make_step, weights


@pytest.mark.usefixtures("alone")
def test_vectors_are_the_rows_of_the_tables_and_lists_are_their_means(data: Data) -> None:
    step = make_step(data.manifest)
    batch = data.batch(range(7))
    candidates = torch.tensor([3, 3, 0, 41])
    tables = step.recommender.tables
    found = tables(tables.ask(batch, candidates))
    vectors, candidates_CD = found.inputs, found.candidates_CD
    rows = weights(step)
    assert not found.request
    assert not found.attributes
    assert torch.equal(candidates_CD, rows["item"][candidates])
    assert torch.equal(vectors["item"], rows["item"][batch.item_T])
    assert list(vectors) == ["item", "action", "tags", "device", "genres", "content_type", "release_age"]
    empty_lists = 0
    for name in list(vectors)[1:]:
        column = batch.features[name]
        if isinstance(column, Lists):
            lists = column.values.split(column.lengths.tolist())
            empty_lists += sum(len(values) == 0 for values in lists)
            expected = torch.stack([rows[name][v].mean(dim=0) if len(v) else torch.zeros(8) for v in lists])
        else:
            expected = rows[name][column]
        torch.testing.assert_close(vectors[name], expected)
    assert empty_lists > 0
    assert torch.equal(tables.item_rows(candidates), rows["item"][candidates])
