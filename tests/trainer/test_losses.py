"""The losses against dense formulas, and the sampler against its own distribution."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ingest.batch import JaggedTensor
from trainer.config import LossConfig
from trainer.losses import NegativeSampler, full_softmax, intent_hits, intent_loss, sampled_softmax

Q, V, D = 13, 20, 4
LABELS = [[2, 4], [], [1], [3, 1, 2], [5]]


def jagged(rows: list[list[int]]) -> JaggedTensor:
    return JaggedTensor(torch.tensor([v for row in rows for v in row]), torch.tensor([len(row) for row in rows]))


@pytest.fixture
def case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(Q, D, generator=generator, dtype=torch.float64)
    items = torch.randn(V, D, generator=generator, dtype=torch.float64)
    target = torch.randint(2, V, (Q,), generator=generator)
    weight = torch.rand(Q, generator=generator, dtype=torch.float64)
    return query.requires_grad_(), items.requires_grad_(), target, weight


@pytest.mark.parametrize("chunk", [1, 4, Q, 100])
def test_full_softmax_and_its_gradients_are_cross_entropys(case: tuple[torch.Tensor, ...], chunk: int) -> None:
    query, items, target, weight = case
    scores = (query @ items.T)[:, 2:]
    expected = (weight * F.cross_entropy(scores, target - 2, reduction="none")).sum()
    loss = full_softmax(query, items, target, weight, chunk)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, (query, items)), torch.autograd.grad(3 * expected, (query, items)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_an_unknown_target_has_no_loss_and_no_gradient(case: tuple[torch.Tensor, ...], kind: str) -> None:
    query, items, target, weight = case
    unknown = torch.tensor([0, 5, Q - 1])
    target[unknown], weight[unknown] = 1, 0.0
    known = weight > 0
    negative = torch.tensor([2, 9, 9, 4])

    def loss(rows: torch.Tensor) -> torch.Tensor:
        if kind == "full":
            return full_softmax(query[rows], items, target[rows], weight[rows], 4)
        return sampled_softmax(query[rows], items[target[rows]], items[negative], target[rows], negative,
                               torch.zeros(4), weight[rows])  # fmt: skip

    ours = loss(torch.ones(Q, dtype=torch.bool))
    assert ours.isfinite()
    torch.testing.assert_close(ours, loss(known))
    gradients = torch.autograd.grad(ours, (query, items))
    assert not gradients[0][unknown].any()
    assert not gradients[1][:2].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("chunk", [1, 5])
def test_no_targets_cost_nothing(case: tuple[torch.Tensor, ...], chunk: int) -> None:
    query, items, target, weight = case
    loss = full_softmax(query[:0], items, target[:0], weight[:0], chunk)
    assert loss == 0
    assert not torch.autograd.grad(loss, items)[0].any()


@pytest.mark.parametrize("sampling", ["uniform", "log_uniform"])
def test_sampled_softmax_equals_its_formula(case: tuple[torch.Tensor, ...], sampling: str) -> None:
    query, items, target, weight = case
    sampler = NegativeSampler(LossConfig.model_validate({"negatives": 12, "sampling": sampling}), V, 0)
    negative = sampler.draw(4)
    correction = sampler.log_expected(negative)
    loss = sampled_softmax(query, items[target], items[negative], target, negative, correction, weight)
    expected = torch.zeros((), dtype=torch.float64)
    accidental = 0
    for q in range(Q):
        positive = query[q] @ items[target[q]]
        total = positive.exp()
        for n, item in enumerate(negative.tolist()):
            if item == target[q]:
                accidental += 1
                continue
            rank = item - 2
            probability = 1 / (V - 2) if sampling == "uniform" else math.log((rank + 2) / (rank + 1)) / math.log(V - 1)
            assert correction[n].item() == pytest.approx(math.log(12 * probability), abs=1e-6)
            total = total + (query[q] @ items[item]).exp() / (12 * probability)
        expected = expected + weight[q] * (total.log() - positive)
    assert accidental > 0
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, (query, items)) for value in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampling", ["uniform", "log_uniform"])
def test_the_sampled_denominator_is_the_full_one_on_average(case: tuple[torch.Tensor, ...], sampling: str) -> None:
    query, items, target, _ = (part.detach() for part in case)
    sampler = NegativeSampler(LossConfig.model_validate({"negatives": 64, "sampling": sampling}), V, 0)
    means = torch.zeros(Q, dtype=torch.float64)
    draws = 3000
    positive = (query * items[target]).sum(dim=1)
    for step in range(draws):
        negative = sampler.draw(step)
        for q in (0, 1, 2):
            loss = sampled_softmax(query[q : q + 1], items[target[q : q + 1]], items[negative], target[q : q + 1],
                                   negative, sampler.log_expected(negative), torch.ones(1))  # fmt: skip
            means[q] += (loss + positive[q]).exp() / draws
    full = (query @ items.T)[:, 2:].exp().sum(dim=1)
    torch.testing.assert_close(means[:3], full[:3], rtol=0.02, atol=0)


@pytest.mark.parametrize("sampling", ["uniform", "log_uniform"])
def test_negatives_are_drawn_as_often_as_expected(sampling: str) -> None:
    """Chi-square over all items, five standard deviations wide."""
    sampler = NegativeSampler(LossConfig.model_validate({"negatives": 500, "sampling": sampling}), V, 3)
    steps = 400
    drawn = torch.cat([sampler.draw(step) for step in range(steps)])
    assert drawn.min() == 2
    assert drawn.max() == V - 1
    expected = sampler.log_expected(torch.arange(2, V)).double().exp() * steps
    assert expected.sum().item() == pytest.approx(len(drawn), rel=1e-5)
    chi_square = ((drawn.bincount(minlength=V)[2:] - expected) ** 2 / expected).sum().item()
    freedom = V - 3
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_negatives_depend_on_seed_and_step_alone() -> None:
    config = LossConfig(negatives=50)
    assert torch.equal(NegativeSampler(config, V, 3).draw(7), NegativeSampler(config, V, 3).draw(7))
    assert not torch.equal(NegativeSampler(config, V, 3).draw(7), NegativeSampler(config, V, 3).draw(8))
    assert not torch.equal(NegativeSampler(config, V, 3).draw(7), NegativeSampler(config, V, 4).draw(7))


def test_intent_loss_of_several_labels_is_the_mean_of_the_known_ones() -> None:
    torch.manual_seed(0)
    logits, weight = torch.randn(len(LABELS), 4, dtype=torch.float64, requires_grad=True), torch.rand(5).double()
    expected = torch.zeros((), dtype=torch.float64)
    for q, labels in enumerate(LABELS):
        known = [label - 2 for label in labels if label >= 2]
        for label in known:
            expected = expected - weight[q] * logits[q].softmax(0)[label].log() / len(known)
    loss = intent_loss(logits, jagged(LABELS), weight)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_intent_loss_of_one_label_is_cross_entropy_without_the_unknown() -> None:
    torch.manual_seed(0)
    logits, weight = torch.randn(6, 3), torch.rand(6)
    label = torch.tensor([2, 1, 4, 3, 0, 2])
    known = label >= 2
    expected = (weight * F.cross_entropy(logits, (label - 2).clamp(min=0), reduction="none"))[known].sum()
    torch.testing.assert_close(intent_loss(logits, label, weight), expected)


def test_intent_hits_count_a_true_label_at_the_top() -> None:
    logits = torch.eye(4)[[2, 0, 0, 3, 3]]
    hits, known = intent_hits(logits, jagged(LABELS))
    assert hits.tolist() == [True, False, False, False, True]
    assert known.tolist() == [True, False, False, True, True]
    hits, known = intent_hits(logits, torch.tensor([4, 1, 2, 2, 0]))
    assert hits.tolist() == [True, False, True, False, False]
    assert known.tolist() == [True, False, True, True, False]
