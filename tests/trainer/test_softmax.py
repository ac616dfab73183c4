"""The item losses against dense formulas, over whole and sliced catalogues, and how much of them is in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from embeddings.workers import Worker, own_rows
from tests.scenarios import SPLITS, TwoWorkers
from tests.small import pointed_case, softmax_case
from tests.threads import on_threads
from trainer.negatives import Negatives, NegativeSampler
from trainer.scores.pointers import sum_exp
from trainer.softmax import Pointed, full_softmax, sampled_softmax
from trainer.train_config import LossConfig

pytestmark = pytest.mark.usefixtures("alone")
Q, V, D = 13, 20, 4
COUNTS = np.array([0, 0, *range(V - 2, 0, -1)])
SAMPLINGS = ["uniform", "log_uniform", "in_batch", "mixed"]

Case = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def case() -> Case:
    return softmax_case()


def same_gradients(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...], **tolerance: float) -> None:
    pairs = zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)


def dense_full(query: Tensor, items: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * F.cross_entropy((query @ items.T)[:, 2:], target - 2, reduction="none")).sum()


def in_one(query: Tensor, items: Tensor, target: Tensor, weight: Tensor, scores: int) -> Tensor:
    """The full softmax of one worker, whose slice is the whole catalogue."""
    return full_softmax(query, items[2:], target, weight, 2, scores)


def sampled(query: Tensor, items: Tensor, target: Tensor, weight: Tensor, negatives: Negatives, scores: int) -> Tensor:
    return sampled_softmax(query, items[target], items[negatives.item_N], target, negatives, weight, scores)


@pytest.mark.parametrize("scores", [1, 5, 3 * (V - 2), 70, 10_000])
def test_full_softmax_and_its_gradients_are_cross_entropys(case: Case, scores: int) -> None:
    loss, expected = in_one(*case, scores), dense_full(*case)
    torch.testing.assert_close(loss, expected)
    same_gradients(loss, expected, case[:2])


@pytest.mark.parametrize("scores", [64 * (V - 2), 64 * (V - 2) - 1, 70 * (V - 2)])
def test_many_targets_are_taken_in_chunks(case: Case, scores: int) -> None:
    """Chunks of 64 and of 70 targets and the whole catalogue, or of 256 and tiles of 4 items."""
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(300, D, generator=generator, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randint(2, V, (300,), generator=generator), torch.rand(300, generator=generator).double()
    part = (query, case[1], target, weight)
    loss, expected = in_one(*part, scores), dense_full(*part)
    torch.testing.assert_close(loss, expected)
    same_gradients(loss, expected, (query, case[1]))


@pytest.mark.parametrize("scores", [1, 30, 10_000])
def test_full_softmax_over_two_slices_is_cross_entropys(case: Case, scores: int, two_workers: TwoWorkers) -> None:
    """Queries split unevenly, one worker without any, and both: losses add up, gradients are put together."""
    query, items, target, weight = case
    results = two_workers.result(f"softmax/{scores}")
    for split, sizes in enumerate(SPLITS):
        rows = slice(0, sum(sizes))
        expected = dense_full(query[rows], items, target[rows], weight[rows])
        losses, queries, slices = zip(*(result[split] for result in results), strict=True)
        torch.testing.assert_close(sum(losses), expected.detach())
        grad_query, grad_items = torch.autograd.grad(3 * expected, (query, items))
        torch.testing.assert_close(torch.cat(queries), grad_query[rows])
        torch.testing.assert_close(torch.cat(slices), grad_items[2:])


@pytest.mark.parametrize(("items", "workers"), [(9, 4), (9, 8), (3, 4), (20, 3)])
def test_workers_without_items_of_their_own_share_the_full_softmax(items: int, workers: int) -> None:
    """Nine rows on four workers, 3, 3, 3 and none; a slice of nothing but padding and unknown, too."""
    generator = torch.Generator().manual_seed(2)
    query, table = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (workers, items))
    target, weight = torch.arange(workers) % (items - 2) + 2, torch.arange(1.0, workers + 1, dtype=torch.float64)

    def share(worker: Worker) -> Tensor:
        begin, end = own_rows(items, worker.rank, worker.workers)
        first, own = min(max(begin, 2), end), slice(worker.rank, worker.rank + 1)
        return full_softmax(query[own], table[first:end], target[own], weight[own], first, 30)

    losses = on_threads(workers, share)
    torch.testing.assert_close(sum(losses), dense_full(query, table, target, weight))


@pytest.mark.parametrize("scores", [1, 30, 10_000])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_sampled_softmax_and_its_gradients_are_the_formulas(case: Case, sampling: str, scores: int) -> None:
    """A loop over targets and draws, where an item that is drawn twice counts twice."""
    query, items, target, weight = case
    sampler = NegativeSampler(LossConfig.model_validate({"negatives": 12, "sampling": sampling}), V, 5, COUNTS)
    drawn = sampler.draw(0, target)
    log_expected = sampler.log_expected(drawn)
    losses, accidental = [], 0
    for q in range(Q):
        positive = query[q] @ items[target[q]]
        total = positive.exp()
        for n, item in enumerate(drawn.tolist()):
            if item == target[q]:
                accidental += 1
            else:
                total = total + (query[q] @ items[item] - log_expected[n]).exp()
        losses.append(weight[q] * (total.log() - positive))
    assert accidental > 0
    loss, expected = sampled(*case, sampler(0, target), scores), torch.stack(losses).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    same_gradients(loss, expected, case[:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_sampled_denominator_is_the_full_one_on_average(case: Case, sampling: str) -> None:
    """Batches are drawn from the items' frequencies, which is what the correction of in-batch negatives supposes."""
    query, items, target, _ = (part.detach() for part in case)
    sampler = NegativeSampler(LossConfig.model_validate({"negatives": 4096, "sampling": sampling}), V, 0, COUNTS)
    generator, frequency = torch.Generator().manual_seed(0), torch.from_numpy(COUNTS).double()
    means, draws = torch.zeros(3, dtype=torch.float64), 50
    positive = (query * items[target]).sum(dim=1)
    for step in range(draws):
        batch = torch.multinomial(frequency, 2000, replacement=True, generator=generator)
        negatives = sampler(step, batch)
        for q in range(3):
            one = slice(q, q + 1)
            loss = sampled(query[one], items, target[one], torch.ones(1), negatives, 1000)
            means[q] += (loss + positive[q]).exp() / draws
    full = (query @ items.T)[:, 2:].exp().sum(dim=1)
    torch.testing.assert_close(means, full[:3], rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_an_unknown_target_has_no_loss_and_no_gradient(case: Case, kind: str) -> None:
    query, items, target, weight = case
    unknown = torch.tensor([0, 5, Q - 1])
    target[unknown], weight[unknown] = 1, 0.0
    known = weight > 0
    negatives = Negatives(torch.tensor([2, 4, 9]), torch.zeros(3))

    def loss(rows: Tensor) -> Tensor:
        part = (query[rows], items, target[rows], weight[rows])
        return in_one(*part, 40) if kind == "full" else sampled(*part, negatives, 9)

    ours = loss(torch.ones(Q, dtype=torch.bool))
    torch.testing.assert_close(ours, loss(known))
    gradients = torch.autograd.grad(ours, (query, items))
    assert not gradients[0][unknown].any()
    assert not gradients[1][:2].any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_no_targets_and_no_negatives_cost_nothing(case: Case) -> None:
    query, items, target, weight = case
    none = (query[:0], items, target[:0], weight[:0])
    negatives = Negatives(torch.tensor([2, 9]), torch.zeros(2))
    nothing = Negatives(target[:0], weight[:0])
    for loss in (in_one(*none, 10), sampled(*none, negatives, 10), sampled(*case, nothing, 10)):
        assert loss == 0
        assert not torch.autograd.grad(loss, items)[0].any()


def test_a_target_that_is_the_only_negative_costs_nothing(case: Case) -> None:
    query, items, target, weight = case
    only = Negatives(target[:1], torch.tensor([-3.0]))
    loss = sampled(query[:1], items, target[:1], weight[:1], only, 10)
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, (query, items)))


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_scores_of_any_size_are_safe(case: Case, kind: str) -> None:
    """Scores of tens of thousands, in float32, against float64."""
    query, items, target, weight = case
    negatives = Negatives(torch.arange(2, V, 3), torch.zeros(6))
    losses = {}
    for dtype in (torch.float32, torch.float64):
        part = ((100 * query).to(dtype), (100 * items).to(dtype), target, weight.to(dtype))
        losses[dtype] = in_one(*part, 50) if kind == "full" else sampled(*part, negatives, 50)
    assert losses[torch.float64] > 10_000
    torch.testing.assert_close(losses[torch.float32].double(), losses[torch.float64], rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, (query, items)) for loss in losses.values()]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("kind", ["full", "full in tiles", "sampled"])
def test_under_autocast_scores_are_bfloat16_and_the_rest_is_float32(case: Case, kind: str) -> None:
    query, items, target, weight = (part.float() if part.is_floating_point() else part for part in case)
    query, items = query.detach().requires_grad_(), items.detach().requires_grad_()
    negatives = Negatives(torch.arange(2, V, 3), torch.zeros(6))

    def loss() -> Tensor:
        part = (query, items, target, weight)
        return sampled(*part, negatives, 50) if kind == "sampled" else in_one(*part, 9 if "tiles" in kind else 1000)

    expected = loss()
    with torch.autocast("cpu", torch.bfloat16), Recorder() as recorder:
        ours = loss()
        gradients = torch.autograd.grad(ours, (query, items))
    assert ours.dtype == gradients[0].dtype == gradients[1].dtype == torch.float32
    assert recorder.products == {torch.bfloat16}
    assert recorder.softmaxes == {torch.float32}
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0)
    for a, b in zip(gradients, torch.autograd.grad(expected, (query, items)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.03)


class Recorder(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, and in which types products and softmax are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.products: set[torch.dtype] = set()
        self.softmaxes: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                    self.products.add(tensor.dtype)
                if function.overloadpacket == torch.ops.aten._softmax:
                    self.softmaxes.add(tensor.dtype)
        return result


@pytest.mark.parametrize("kind", ["full", "full in tiles", "sampled", "dense"])
def test_targets_times_items_are_never_alive_at_once(kind: str) -> None:
    """The largest tensor of the forward and the backward pass; a dense cross-entropy has one of all scores."""
    targets, size = 200, 500
    scores = {"full": 40_000, "full in tiles": 300, "sampled": 4000, "dense": 0}[kind]
    query, items = torch.randn(targets, D, requires_grad=True), torch.randn(size, D, requires_grad=True)
    target, weight = torch.randint(2, size, (targets,)), torch.ones(targets)
    negatives = NegativeSampler(LossConfig(negatives=300, sampling="uniform"), size, 0)(0, target)
    with Recorder() as recorder:
        if kind == "dense":
            loss = dense_full(query, items, target, weight)
        elif kind == "sampled":
            loss = sampled(query, items, target, weight, negatives, scores)
        else:
            loss = in_one(query, items, target, weight, scores)
        loss.backward()
    if kind == "dense":
        assert recorder.largest >= targets * (size - 2)
    else:
        assert recorder.largest <= max(scores, size * D)
    assert loss.isfinite()


def mixture(scores: Tensor, target_score: Tensor, logit: Tensor, hit: Tensor) -> Tensor:
    """-log of the target's probability, by the sums themselves."""
    total = scores.exp().sum(dim=1) + logit.exp().sum(dim=1)
    return total.log() - (target_score.exp() + (logit.exp() * hit).sum(dim=1)).log()


@pytest.mark.parametrize("scores", [1, 3 * (V - 2), 10_000])
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_what_is_pointed_at_is_mixed_into_the_softmax(case: Case, kind: str, scores: int) -> None:
    """Also for targets without a row, which only their candidates can give; those that nothing gives weigh nothing."""
    query, items, target, weight = case
    logit, hit = pointed_case(target)
    row = target.clone()
    row[:4] = 1  # these targets have no row; of two of them there is no candidate
    known = row > 1
    weight = weight * (known | (hit & logit.isfinite()).any(dim=1))
    assert (weight == 0).sum() == 2
    pointed = Pointed(*sum_exp(logit, hit))
    negatives = Negatives(torch.tensor([2, 4, 9, 11]), torch.tensor([0.3, -0.2, 0.1, 0.0]))
    own = (query * items[row]).sum(dim=1).masked_fill(~known, -torch.inf)
    if kind == "full":
        ours = full_softmax(query, items[2:], row, weight, 2, scores, pointed)
        catalogue = (query @ items.T)[:, 2:]
    else:
        rows = items[row], items[negatives.item_N]
        ours = sampled_softmax(query, *rows, row, negatives, weight, scores, pointed)
        drawn = query @ items[negatives.item_N].T - negatives.log_q_N
        drawn = drawn.masked_fill(row[:, None] == negatives.item_N, -torch.inf)
        catalogue = torch.cat([drawn, own[:, None]], dim=1)
    there = weight > 0
    expected = weight[there] @ mixture(catalogue[there], own[there], logit[there], hit[there])
    torch.testing.assert_close(ours, expected)
    same_gradients(ours, expected, (query, items, logit))


@pytest.mark.parametrize("workers", [2, 3])
def test_two_slices_and_what_is_pointed_at_are_one_softmax(case: Case, workers: int) -> None:
    query, items, target, weight = (part.detach() for part in case)
    logit, hit = pointed_case(target)
    all_Q, own_Q = (part.detach() for part in sum_exp(logit, hit))

    def share(worker: Worker) -> Tensor:
        begin, end = own_rows(V, worker.rank, worker.workers)
        own = slice(*own_rows(Q, worker.rank, worker.workers))
        first = max(begin, 2)
        pointed = Pointed(all_Q[own], own_Q[own])
        return full_softmax(query[own], items[first:end], target[own], weight[own], first, 30, pointed)

    scores = query @ items.T
    expected = mixture(scores[:, 2:], (query * items[target]).sum(dim=1), logit, hit)
    torch.testing.assert_close(sum(on_threads(workers, share)), weight @ expected.detach())


@pytest.mark.parametrize("scores", [1, 3 * (V - 2), 70, 10_000])
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_a_column_that_is_added_is_one_of_a_one_hot_row(case: Case, kind: str, scores: int) -> None:
    """The same loss and gradients as with longer rows, also for targets without a row, which candidates give."""
    _, items, target, weight = case
    generator = torch.Generator().manual_seed(6)
    query = torch.randn(Q, D + 5, generator=generator, dtype=torch.float64, requires_grad=True)
    adds = torch.randint(0, 5, (V,), generator=generator)
    logit, hit = pointed_case(target)
    row = target.clone()
    row[:4] = 1
    weight = weight * ((row > 1) | (hit & logit.isfinite()).any(dim=1))
    wide, pointed = torch.cat([items, torch.eye(5).double()[adds]], dim=1), Pointed(*sum_exp(logit, hit))
    negatives = Negatives(torch.tensor([2, 4, 9, 11]), torch.tensor([0.3, -0.2, 0.1, 0.0]))
    if kind == "sampled":
        item = negatives.item_N
        ours = sampled_softmax(
            query, items[row], items[item], row, negatives, weight, scores, pointed, (adds[row], adds[item])
        )
        theirs = sampled_softmax(query, wide[row], wide[item], row, negatives, weight, scores, pointed)
    else:
        ours = full_softmax(query, items[2:], row, weight, 2, scores, pointed, adds[2:])
        theirs = full_softmax(query, wide[2:], row, weight, 2, scores, pointed)
    torch.testing.assert_close(ours, theirs)
    pairs = zip(
        *(torch.autograd.grad(loss, (query, items, logit), retain_graph=True) for loss in (ours, theirs)), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scores", [1, 10_000])
def test_columns_that_are_facts_take_no_gradient(case: Case, scores: int) -> None:
    query, items, target, weight = case
    plain, short = (
        torch.autograd.grad(full_softmax(query, items[2:], target, weight, 2, scores, learned=n), (query, items))
        for n in (None, D - 2)
    )
    torch.testing.assert_close(short[0], plain[0])
    torch.testing.assert_close(short[1][:, :-2], plain[1][:, :-2])
    assert (plain[1][2:, -2:] != 0).all()
    assert (short[1][:, -2:] == 0).all()


def test_slices_add_columns_of_all_queries(case: Case) -> None:
    _, items, target, weight = (part.detach() for part in case)
    generator = torch.Generator().manual_seed(6)
    query, adds = torch.randn(Q, D + 5, generator=generator).double(), torch.randint(0, 5, (V,), generator=generator)

    def share(worker: Worker) -> Tensor:
        begin, end = own_rows(V, worker.rank, worker.workers)
        own, first = slice(*own_rows(Q, worker.rank, worker.workers)), max(begin, 2)
        part = items[first:end], target[own], weight[own], first, 30
        return full_softmax(query[own], *part, adds_v=adds[first:end])

    wide = torch.cat([items, torch.eye(5).double()[adds]], dim=1)
    torch.testing.assert_close(sum(on_threads(3, share)), dense_full(query, wide, target, weight))


def test_two_workers_give_pointers_their_gradients(case: Case, two_workers: TwoWorkers) -> None:
    """The gradients of queries, rows and logits on two workers are those of one."""
    query, items, target, weight = case
    logit, hit = pointed_case(target)
    loss = full_softmax(query, items[2:], target, weight, 2, 30, Pointed(*sum_exp(logit, hit)))
    expected = torch.autograd.grad(3 * loss, (query, items, logit))
    queries, slices, logits = zip(*two_workers.result("softmax/pointed"), strict=True)
    torch.testing.assert_close(torch.cat(queries), expected[0])
    torch.testing.assert_close(torch.cat(slices), expected[1][2:])
    torch.testing.assert_close(torch.cat(logits), expected[2])


def test_sums_without_any_candidate_have_no_gradient() -> None:
    logit = torch.tensor([[0.5, 1.0], [-torch.inf, -torch.inf]], requires_grad=True)
    hit = torch.tensor([[False, False], [True, True]])
    sums = sum_exp(logit, hit)
    assert [part.isinf().tolist() for part in sums] == [[False, True], [True, True]]
    (gradient,) = torch.autograd.grad([part[0] + part[1] for part in sums], logit, [torch.tensor(1.0)] * 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.37754, 0.62246], [0.0, 0.0]]), rtol=1e-4, atol=0)
