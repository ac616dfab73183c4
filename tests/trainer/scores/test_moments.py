"""What is taken lately against counting the log itself, and its candidates against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ingest.data.activity import BUCKET
from ingest.data.moments import BY_SPANS, SPANS, take_snapshots
from ingest.errors import InputError
from ingest.features.elapsed import MISSING_TIME
from tests.small import HOUR, Data, take_rows
from trainer.scores.intents import Acting
from trainer.scores.moments import Groups, MomentPointer, Moments


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("size", [6, 64])
def test_snapshots_are_counts_of_the_log_before_each_moment(data: Data, total: bool, size: int) -> None:
    """Each event of the log, or of the training data, once in every span that has it; nothing of the moment itself."""
    step = 6 * HOUR
    rows = [*data.reader("test" if total else "train", evaluate=True, shuffle_buffer=10**9).rows()]
    (others,) = data.reader("rest", evaluate=True, shuffle_buffer=10**9).rows()
    # without a training row, and yet in the training data: users with one event
    rows.append(others if total else take_rows(others, np.flatnonzero(others.lengths == 1)))
    time, item, device = (np.concatenate([part.columns[name] for part in rows]) for name in ("time", "item", "device"))
    devices = data.manifest.feature("device").size
    found = take_snapshots(data.url, data.manifest, data.items, step, size, total, "device")
    assert found.by_GMB.shape[2] == len(BY_SPANS) * devices
    full, released = 0, data.items.columns["release_age"]
    assert isinstance(released, np.ndarray)
    for g in range(0, len(found.item_GM), 3):
        now = (found.first + g) * step
        before = time // BUCKET < now // BUCKET
        counts = {
            span: np.bincount(
                item[before & (time // BUCKET >= now // BUCKET - span)], minlength=data.manifest.catalogue
            )
            for span in [*SPANS, 10**9]
        }
        listed = found.item_GM[g][found.item_GM[g] > 0]
        assert len(set(listed.tolist())) == len(listed)
        there = (released < now) & (released > MISSING_TIME)
        there[item[before]] = True
        assert len(listed) == min(size, there[2:].sum())
        full += len(listed) == size
        for place, index in enumerate(listed.tolist()):
            expected = [math.log1p(counts[span][index]) for span in counts]
            since = (
                released[index] if released[index] > MISSING_TIME else (time[item == index] // BUCKET).min() * BUCKET
            )
            expected.append(math.log1p((now - since) / HOUR))
            np.testing.assert_allclose(found.feature_GMF[g, place], expected, rtol=1e-5, atol=1e-6)
            lately = [before & (item == index) & (time // BUCKET >= now // BUCKET - span) for span in BY_SPANS]
            by = [math.log1p((taken & (device == value)).sum()) for taken in lately for value in range(devices)]
            np.testing.assert_allclose(found.by_GMB[g, place], by, rtol=1e-5, atol=1e-6)
        for span in SPANS:  # the first of each list is there
            if counts[span].any():
                assert counts[span][listed].max() == counts[span].max()
    assert (full > 0) == (size == 6)


def test_each_query_meets_the_rows_of_its_group() -> None:
    torch.manual_seed(0)
    group = torch.randint(0, 5, (70,))
    group[group == 3] = 4  # nobody is of group 3, and of each other there are more than a block
    query, rows = torch.randn(70, 6, requires_grad=True), torch.randn(5, 9, 6, requires_grad=True)
    ours, expected = Groups.of(group, 5).products(query, rows), torch.einsum("qx,qmx->qm", query, rows[group])
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(expected)
    pairs = (torch.autograd.grad((weight * out).sum(), (query, rows)) for out in (ours, expected))
    for ours_grad, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours_grad, theirs)
    assert Groups.of(group[:0], 5).products(query[:0], rows).shape == (0, 9)


@pytest.mark.parametrize(
    ("lag", "acts", "by"), [(0, True, None), (31 * HOUR, False, None), (0, True, "device"), (0, False, "device")]
)
def test_candidates_are_those_of_the_request_and_have_the_formulas_logits(
    data: Data, lag: int, acts: bool, by: str | None
) -> None:
    torch.manual_seed(0)
    batch, step, size = data.batch(range(12)), 12 * HOUR, 5
    snapshots = take_snapshots(data.url, data.manifest, data.items, step, size, False, by)
    values = data.manifest.feature(by).size if by else 0
    value_Q = batch.request[by][batch.target_position_Q] if by else None
    time_Q = batch.request_time_T[batch.target_position_Q]
    moments = Moments.of(snapshots, time_Q, time_Q - lag, step, value_Q)
    old = 0
    pointer = MomentPointer(8, 40, size, by is not None)
    if pointer.by is not None:
        torch.nn.init.normal_(pointer.by.weight)
    query, rows = torch.randn(len(time_Q), 8), torch.randn(len(moments.item_U), 8)
    labels = torch.randn(len(moments.item_U), 3)
    acting = Acting(torch.randn(len(time_Q), 3), labels, *torch.randn(2, len(time_Q))) if acts else None
    pointed, candidates = pointer(query, rows, moments, batch.target_Q, listed=True, acting=acting)
    assert candidates is not None
    hits = 0
    for q, time in enumerate(time_Q.tolist()):
        g = max((time - lag) // step - snapshots.first, 0)
        hours = max(time - (snapshots.first + g + 1) * step, 0) // HOUR
        old += hours > 0
        items = snapshots.item_GM[g]
        assert candidates.item_QW[q].tolist() == items.tolist()
        asked = pointer.query(query[q])
        logits = []
        for place, item in enumerate(items.tolist()):
            if item:
                nth = moments.item_U.tolist().index(item)
                key = pointer.key(rows[nth])
                known = [*snapshots.feature_GMF[g, place].tolist(), math.log1p(hours)]
                shown = pointer.features(torch.tensor(known))
                logits.append(asked[:8] @ key / math.sqrt(8) + asked[8:-1] @ shown + asked[-1])
                if pointer.by is not None and value_Q is not None:
                    counts = torch.from_numpy(snapshots.by_GMB[g, place]).view(len(BY_SPANS), values)
                    logits[-1] = logits[-1] + pointer.by(query[q]) @ counts[:, value_Q[q]]
                if acting is not None:
                    logits[-1] = logits[-1] + acting.asked_NL[q] @ labels[nth] + acting.own_N[q]
                torch.testing.assert_close(candidates.logit_QW[q, place], logits[-1], rtol=1e-4, atol=1e-4)
            else:
                assert candidates.logit_QW[q, place] == -torch.inf
        if logits:
            torch.testing.assert_close(pointed.all_Q[q], torch.stack(logits).logsumexp(0), rtol=1e-4, atol=1e-4)
        own = [logit for logit, item in zip(logits, items.tolist(), strict=False) if item == batch.target_Q[q]]
        hits += len(own)
        torch.testing.assert_close(
            pointed.target_Q[q], own[0] if own else torch.tensor(-torch.inf), rtol=1e-4, atol=1e-4
        )
    assert hits > 10
    assert (old > 10) == (lag > 0)


def test_requests_outside_the_log_have_its_first_or_last_moment(data: Data) -> None:
    snapshots = take_snapshots(data.url, data.manifest, data.items, HOUR, 5, True)
    time = torch.tensor([0, data.manifest.last_time + 1000 * HOUR])
    moments = Moments.of(snapshots, time, time, HOUR)
    assert moments.feature_GMF[0, 0, -1] == 0
    assert moments.feature_GMF[1, 0, -1] == pytest.approx(math.log(1000), rel=0.01)
    assert moments.item_U[moments.place_GM].tolist() == snapshots.item_GM[[0, -1]].tolist()


def test_more_moments_than_memory_holds_are_refused(data: Data) -> None:
    """As where one event lies centuries before all others."""
    manifest = data.manifest.model_copy(update={"first_time": -62_000_000_000_000})
    with pytest.raises(InputError, match=r"moments of 5m, which take \d+\.\d GiB of memory, and this machine has"):
        take_snapshots(data.url, manifest, data.items, BUCKET, 4096, True)
