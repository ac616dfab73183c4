"""Copying from the history against loops over users, places and items."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor

from ingest.data.batch import Batch
from ingest.features.feature import UNKNOWN
from tests.small import Data
from trainer.attention import Layout
from trainer.scores.history import BACK, HistoryPointer, time_bucket
from trainer.scores.intents import Acting

LENGTH, WIDTH, D = 20, 5, 8


@pytest.fixture
def batch(data: Data) -> Batch:
    """Some items hidden as in a training step, some unknown, some that training does not know."""
    batch = data.batch(range(25))
    item = batch.item_T.masked_fill(batch.item_T % 7 == 3, UNKNOWN)
    item = torch.where(item % 5 == 4, item + data.manifest.items, item)
    target = torch.where(batch.target_Q % 5 == 4, batch.target_Q + data.manifest.items, batch.target_Q)
    return replace(batch, item_T=torch.full_like(item, UNKNOWN), true_item_T=item, target_Q=target)


def pointer(request: bool) -> HistoryPointer:
    torch.manual_seed(0)
    history = HistoryPointer(WIDTH, D, LENGTH, 40, request)
    for parameter in history.parameters():
        torch.nn.init.normal_(parameter)
    return history


def expected(
    history: HistoryPointer, query: Tensor, features: Tensor, batch: Batch, acting: Acting | None = None
) -> list[dict[int, list[Tensor]]]:
    """For each token the logits of every item of its past, place by place, from the formula."""
    found = []
    asked, key = history.query(query), history.key(features)
    token = 0
    for length in batch.lengths_B.tolist():
        for k in range(length):
            logits: dict[int, list[Tensor]] = {}
            q, back, gap, gate = asked[token + k].split(history.sizes)
            now = batch.request_time_T[token + k] if history.request else batch.time_T[token + k]
            for j in range(k + 1):
                before = query[token + j - 1] if j else torch.zeros(D)
                earlier = batch.past_T[token : token + j].tolist().count(int(batch.past_T[token + j]))
                often = history.often.weight[int(BACK * math.log2(earlier + 1))]
                mixed = history.mixed(key[token + j] + often)
                m = key[token + j] + mixed + history.before.weight @ before
                passed = max(int(now - batch.time_T[token + j]), 0)
                after = batch.past_T[token + j + 1 : token + k + 1].tolist()
                if batch.past_T[token + j] in after:
                    bucket = history.back + int(BACK * math.log2(k - j + 1))
                else:
                    bucket = int(BACK * math.log2(len(set(after)) + 1))
                logit = q @ m / math.sqrt(D) + back[bucket]
                logit = logit + gap[int(math.log2(passed + 1))] + gate[0]
                if acting is not None:
                    logit = logit + acting.asked_NL[token + k] @ acting.label_XL[token + j] + acting.own_N[token + k]
                    logit = logit + acting.same_N[token + k] * (j == k)
                item = int(batch.past_T[token + j])
                if item != UNKNOWN:
                    logits.setdefault(item, []).append(logit)
            found.append(logits)
        token += length
    return found


def intents(batch: Batch) -> Acting:
    asked, label = torch.randn(2, batch.tokens, 6)
    return Acting(asked, label, *torch.randn(2, batch.tokens))


def log_sum(logits: list[Tensor]) -> Tensor:
    return torch.stack(logits).logsumexp(dim=0) if logits else torch.tensor(-torch.inf)


@pytest.mark.parametrize(("request_known", "acts"), [(False, True), (True, False)])
def test_every_place_of_the_past_is_a_candidate(batch: Batch, request_known: bool, acts: bool) -> None:
    history = pointer(request_known)
    query, features = torch.randn(batch.tokens, D), torch.randn(batch.tokens, WIDTH)
    acting = intents(batch) if acts else None
    pointed, candidates = history(query, features, batch, Layout(batch.lengths_B), listed=True, acting=acting)
    assert candidates is not None
    assert candidates.item_QW.shape == (len(batch.target_Q), LENGTH)
    again = new = 0
    found = expected(history, query, features, batch, acting)
    for q, token in enumerate(batch.target_position_Q.tolist()):
        logits, target = found[token], int(batch.target_Q[q])
        torch.testing.assert_close(
            pointed.all_Q[q], log_sum([*chain.from_iterable(logits.values())]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(pointed.target_Q[q], log_sum(logits.get(target, [])), rtol=1e-4, atol=1e-4)
        again, new = again + (target in logits), new + (target not in logits)
        assert bool(batch.again_Q[q]) == (target in logits)
        listed: dict[int, list[Tensor]] = {}
        for item, logit in zip(candidates.item_QW[q].tolist(), candidates.logit_QW[q], strict=True):
            if logit > -torch.inf:
                listed.setdefault(item, []).append(logit)
        assert listed.keys() == logits.keys()
        for item, values in listed.items():
            torch.testing.assert_close(log_sum(values), log_sum(logits[item]), rtol=1e-4, atol=1e-4)
    assert again > 20
    assert new > 20
    assert max(max(logits, default=0) for logits in found) > batch.items  # items without a row are copied, too


def test_a_history_of_unknown_items_has_no_candidate_and_no_gradient(batch: Batch) -> None:
    history, unknown = pointer(False), torch.full_like(batch.item_T, UNKNOWN)
    query = torch.randn(batch.tokens, D, requires_grad=True)
    nobody = replace(batch, true_item_T=unknown, target_Q=torch.full_like(batch.target_Q, UNKNOWN))
    pointed, _ = history(query, torch.randn(batch.tokens, WIDTH), nobody, Layout(batch.lengths_B), listed=False)
    assert pointed.all_Q.isneginf().all()
    assert pointed.target_Q.isneginf().all()
    assert not nobody.again_Q.any()
    (gradient,) = torch.autograd.grad((pointed.all_Q, pointed.target_Q), query, [torch.ones(len(batch.target_Q))] * 2)
    assert not gradient.any()


def test_places_are_told_apart_in_bf16_however_large_the_gate() -> None:
    """It is as the logarithm of the catalogue, and all places have it."""
    torch.manual_seed(0)
    item, at, gap = torch.randint(2, 500, (1, 50)), torch.arange(50)[None], torch.zeros(1, 50, 50, dtype=torch.int64)
    pointer = HistoryPointer(64, 64, 200, 1_000_000, request=True)
    query, key, logits = torch.randn(1, 50, 64), 0.3 * torch.randn(1, 50, 64), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
            asked = pointer.query(query)
            logits.append(pointer._logits(asked, key.to(asked.dtype), item, gap, at))
    single, half = (logit[logit > -torch.inf] for logit in logits)
    error = half - single
    assert (error - error.mean()).abs().max() < 0.02


def test_times_are_told_apart_by_their_doublings() -> None:
    spans = torch.tensor([-5, 0, 1, 2, 3, 2**20 - 2, 2**20 - 1, 3 * 2**39, 2**62])
    assert time_bucket(spans).tolist() == [0, 0, 1, 1, 2, 19, 20, 40, 43]
