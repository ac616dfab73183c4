"""What others took after the user's last item: the candidates against counting the log, their logits against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ingest.data.successions import Successions
from tests.evaluation.events import histories_of
from tests.small import HOUR, Data
from trainer.scores.history import GAPS
from trainer.scores.transitions import MATCH, Followers, TransitionPointer


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("lag", [0, 30 * HOUR])
def test_candidates_are_what_came_before_and_have_the_formulas_logits(data: Data, total: bool, lag: int) -> None:
    torch.manual_seed(0)
    batch, size = data.batch(range(12)), 5
    pairs = [
        (before, time, after)
        for row in histories_of(data.url)
        for (before, _, _), (after, time, training) in itertools.pairwise(row)
        if training or total
    ]
    last_Q = batch.item_T[batch.target_position_Q]
    time_Q = batch.request_time_T[batch.target_position_Q]
    successions = Successions.load(data.url, data.manifest.catalogue, total)
    followers = Followers.of(successions, last_Q, time_Q, time_Q - lag, size)
    pointer = TransitionPointer(8, 40, size)
    torch.nn.init.normal_(pointer.query.weight)
    query_QD, rows_UD = torch.randn(len(last_Q), 8), torch.randn(len(followers.item_U), 8)
    pointed, candidates = pointer(query_QD, rows_UD, followers, batch.target_Q, listed=True)
    assert candidates is not None
    assert candidates.item_QW.shape == (len(last_Q), size)
    hits = full = 0
    for q, (last, time) in enumerate(zip(last_Q.tolist(), time_Q.tolist(), strict=True)):
        known = sorted(((t, after) for before, t, after in pairs if before == last and t < time - lag), reverse=True)
        full += len(known) > size
        if len({t for t, _ in known[: size + 1]}) < len(known[: size + 1]):
            continue  # of equal times any comes first
        match, ago, gate = pointer.query(query_QD[q]).split([MATCH, GAPS, 1])
        logits = []
        for t, after in known[:size]:
            row = rows_UD[followers.item_U.tolist().index(after)]
            bucket = int(math.log2(time - t + 1))
            logits.append(match @ pointer.key(row) / math.sqrt(MATCH) + ago[bucket] + gate[0])
        items = [after for _, after in known[:size]]
        assert candidates.item_QW[q].tolist() == items + [0] * (size - len(items))
        own = [logit for logit, item in zip(logits, items, strict=True) if item == batch.target_Q[q]]
        hits += len(own)
        if logits:
            found = candidates.logit_QW[q, : len(items)]
            torch.testing.assert_close(found, torch.stack(logits), rtol=1e-4, atol=1e-4)
        assert (candidates.logit_QW[q, len(items) :] == -torch.inf).all()
        for ours, theirs in ((pointed.all_Q[q], logits), (pointed.target_Q[q], own)):
            expected = torch.stack(theirs).logsumexp(0) if theirs else torch.tensor(-torch.inf)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert hits > 3
    assert full > 3
