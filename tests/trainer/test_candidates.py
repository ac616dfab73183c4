"""What a model knows around a request: live up to it, frozen up to where the split begins, or up to an update."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from embeddings.workers import Worker
from ingest.data.activity import BUCKET
from ingest.data.moments import SPANS
from ingest.durations import parse_duration
from ingest.features.feature import FIRST_VALUE
from tests.evaluation.events import histories_of
from tests.small import HOUR, MODEL, Data, train_config
from trainer.candidates import CandidateReader
from trainer.models.registry import MomentsConfig

STEP = HOUR // 2


@pytest.fixture(scope="module")
def in_time(prepared: dict[str, str]) -> Data:
    return Data(prepared["in time"])


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_known_ends_with_the_request_or_with_the_split(in_time: Data, split: str, live: bool) -> None:
    moments = MomentsConfig(step="30m", items=40, transitions=500, live=live)
    model = MODEL.model_copy(update={"knows": ["recent", "transitions"], "moments": moments})
    reader = CandidateReader(model, train_config(), in_time.manifest, Worker(), in_time.known)
    rows = list(histories_of(in_time.url))
    last = max(time for row in rows for _, time, _ in row)
    begins = {"test": last - parse_duration("3d") + 1}
    begins["validation"] = begins["test"] - parse_duration("12h")
    (batch,) = (batch for batch, _ in in_time.reader(split, evaluate=True, tokens=10**9, shuffle_buffer=10**9).epoch(0))
    _, _, further = reader.of(batch, batch.target_Q[:0], None)
    assert further.moments is not None
    assert further.followers is not None
    time_Q, last_Q = batch.target_time_Q, batch.past_T[batch.target_position_Q]
    assert time_Q is not None
    assert (time_Q >= begins[split]).all()
    listed = followed = 0
    for q, (time, before) in enumerate(zip(time_Q.tolist(), last_Q.tolist(), strict=True)):
        until = time if live else begins[split]
        now = until // STEP * STEP
        g = int(further.moments.moment_Q[q])
        for place, item in zip(further.moments.place_GM[g], further.moments.feature_GMF[g], strict=True):
            index = int(further.moments.item_U[place])
            if index >= FIRST_VALUE:
                taken = [t for row in rows for i, t, _ in row if i == index and t // BUCKET < now // BUCKET]
                since = now // BUCKET - SPANS[0]
                expected = [sum(t // BUCKET >= since for t in taken), len(taken)]
                np.testing.assert_allclose(item[[0, len(SPANS)]].expm1(), expected, rtol=1e-4, atol=1e-5)
                listed += 1
        known = [
            (t, after)
            for row in rows
            for (item, _, _), (after, t, _) in itertools.pairwise(row)
            if item == before and t < until and before >= FIRST_VALUE and after >= FIRST_VALUE
        ]
        found = further.followers.item_U[further.followers.place_QR[q]]
        assert sorted(found[found > 0].tolist()) == sorted(after for _, after in known)
        age = time - torch.tensor([t for t, _ in known], dtype=torch.int64)
        assert sorted(further.followers.age_QR[q][found > 0].tolist()) == sorted(age.tolist())
        followed += len(known)
    assert listed > 100
    assert followed > 100


@pytest.mark.parametrize("number", [None, 0], ids=["live", "training"])
def test_counts_are_updated_from_time_to_time(in_time: Data, number: int | None) -> None:
    """The last update is at most a period before the request, and one of them is where the test split begins."""
    moments = MomentsConfig(step="30m", transitions=500, refresh="1d")
    model = MODEL.model_copy(update={"knows": ["transitions"], "moments": moments})
    reader = CandidateReader(model, train_config(), in_time.manifest, Worker(), in_time.known)
    rows = list(histories_of(in_time.url))
    begin = max(time for row in rows for _, time, _ in row) - parse_duration("3d") + 1
    updates = [begin + day * parse_duration("1d") for day in range(-100, 4)]
    batch = in_time.batch(range(len(in_time.rows)))
    time_Q, last_Q = (values[batch.target_position_Q] for values in (batch.request_time_T, batch.past_T))
    _, _, further = reader.of(batch, batch.target_Q[:0], number)
    assert further.followers is not None
    fresh, listed = 0, 0
    for q, (time, before) in enumerate(zip(time_Q.tolist(), last_Q.tolist(), strict=True)):
        until = max(update for update in updates if update <= time)
        found = further.followers.item_U[further.followers.place_QR[q]]
        after_times = [
            (after, t)
            for row in rows
            for (item, _, _), (after, t, training) in itertools.pairwise(row)
            if (training or number is None) and item == before and t < time and min(before, after) >= FIRST_VALUE
        ]
        known = [after for after, t in after_times if t < until]
        assert sorted(found[found > 0].tolist()) == sorted(known)
        fresh, listed = fresh + len(after_times) - len(known), listed + len(known)
    assert min(fresh, listed) > 100


def test_an_item_is_looked_up_once_however_often_it_is_a_candidate(in_time: Data) -> None:
    moments = MomentsConfig(step="30m", items=40, transitions=500)
    model = MODEL.model_copy(update={"knows": ["attributes", "recent", "transitions"], "moments": moments})
    reader = CandidateReader(model, train_config(), in_time.manifest, Worker(), in_time.known)
    batch = in_time.batch(range(20))
    item_C = batch.target_Q.repeat(2)
    row_U, facts, further = reader.of(batch, item_C, None)
    item_N = torch.cat([item_C, *further.items])
    assert further.place_C is not None
    assert len(row_U) == len(item_N.unique()) < len(item_N)
    assert row_U[further.place_C].tolist() == reader.rows(item_N).tolist()
    for name, values in reader.facts(item_N).attributes.items():
        if isinstance(values, torch.Tensor):
            found = facts.attributes[name]
            assert isinstance(found, torch.Tensor)
            assert found[further.place_C].tolist() == values.tolist()
