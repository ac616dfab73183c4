"""A training step against plain torch, and on two workers against one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from embeddings.workers import Worker
from evaluation.evaluate import validate
from ingest.data.batch import Batch, Lists
from ingest.features.feature import UNKNOWN
from tests.scenarios import EVERYTHING, KNOWING, SCENARIOS, SETTINGS, TwoWorkers, steps, unknown_targets
from tests.small import MODEL, Data, dense, make_step, partly_unknown, same, train_config, weights
from trainer.attention import Layout
from trainer.checkpoint import Checkpoints
from trainer.layers import Inputs
from trainer.models.intentrec import IntentRecConfig
from trainer.models.registry import NeuralConfig
from trainer.progress import Progress, identity
from trainer.recommender import build
from trainer.step import Step

pytestmark = pytest.mark.usefixtures("alone")


def plain_loss(
    network: Any,
    tables: dict[str, Tensor],
    batch: Batch,
    negative: Tensor | None,
    log_expected: Tensor | None,
    temperature: float | None,
) -> Tensor:
    """IntentRec's loss with dense tables, F.cross_entropy and loops over the labels."""
    vectors = {}
    for name, table in tables.items():
        value = batch.item_T if name == "item" else batch.features[name]
        if isinstance(value, Lists):
            lists = value.values.split(value.lengths.tolist())
            vectors[name] = torch.stack([table[v].sum(dim=0) / max(len(v), 1) for v in lists])
        else:
            vectors[name] = table[value]
    numbers = batch.features["scroll"][:, None]  # type: ignore[index]
    output = network(Inputs(vectors, numbers, batch.time_T, batch.position_T, Layout(batch.lengths_B)))
    at, target, item = batch.target_position_Q, batch.target_Q, tables["item"]
    query = output.query_TD[at]
    if temperature is not None:
        query = query / query.norm(dim=1, keepdim=True) / temperature
        item = item / item.norm(dim=1, keepdim=True)
    if negative is None:
        losses = F.cross_entropy((query @ item.T)[:, 2:], target - 2, reduction="none", ignore_index=UNKNOWN - 2)
    else:
        logits = query @ item[negative].T - log_expected
        logits = logits.masked_fill(target[:, None] == negative, -torch.inf)
        positive = (query * item[target]).sum(dim=1, keepdim=True)
        losses = F.cross_entropy(torch.cat([positive, logits], dim=1), torch.zeros_like(target), reduction="none")
        losses = losses * (target != UNKNOWN)
    losses = losses / batch.weight_Q[target != UNKNOWN].sum()
    for name, logits_TL in output.intents.items():
        log_p = logits_TL[at].log_softmax(dim=1)
        label = batch.labels[name]
        lists = label.values.split(label.lengths.tolist()) if isinstance(label, Lists) else label[:, None]
        for q, values in enumerate(lists):
            known = [value - 2 for value in values.tolist() if value >= 2]
            if known:
                losses = losses - torch.eye(len(losses))[q] * log_p[q, known].mean() / batch.weight_Q.sum()
    return (batch.weight_Q * losses).sum()


@pytest.mark.parametrize(
    ("sampling", "optimizer", "temperature"),
    [
        *itertools.product([None, "log_uniform"], ["sgd", "adagrad", "rowwise_adagrad"], [None]),
        *itertools.product(["uniform", "in_batch", "mixed"], ["sgd"], [None]),
        *itertools.product([None, "mixed"], ["sgd"], [0.2]),
    ],
)
def test_one_step_equals_plain_torch(
    data: Data, sampling: str | None, optimizer: str, temperature: float | None
) -> None:
    """Dense gradients, AdamW's weights, and table rows that are read both as inputs and as candidates."""
    changes: dict[str, Any] = {
        "tables": {"optimizer": optimizer, "learning_rate": 0.3},
        "loss": {"kind": "sampled", "negatives": 20, "sampling": sampling} if sampling else {"kind": "full"},
        "clip_norm": 1e9,
        "weight_decay": 0.5,
    }
    model = MODEL.model_copy(update={"temperature": temperature})
    step = make_step(data.manifest, model=model, counts=data.items.counts, **changes)
    batch = partly_unknown(data.batch(range(8)))
    assert (batch.target_Q == UNKNOWN).any()
    tables = {name: weights(step)[name].requires_grad_() for name in step.recommender.tables.names}
    network = build(MODEL, train_config(**changes), data.manifest).network
    negative = step.sampler.draw(0, batch.target_Q) if sampling else None
    log_expected = None if negative is None else step.sampler.log_expected(negative).float()
    loss = plain_loss(network, tables, step.with_unknowns(batch, 0), negative, log_expected, temperature)
    loss.backward()
    losses, norm = step.train(batch, 0, step.weights_of(batch).tolist())
    ours = losses.item / batch.item_weight_Q.sum() + sum(losses.intents.values()) / batch.weight_Q.sum()
    torch.testing.assert_close(ours, loss.detach())

    parameters = dict(network.named_parameters())
    gradients = {name.replace("module.", "").removeprefix("network."): p.grad for name, p in step.dense.items()}
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert float(norm) == pytest.approx(
        float(torch.nn.utils.get_total_norm(p.grad for p in parameters.values())), rel=1e-4
    )
    for parameter in parameters.values():
        torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.5 if parameter.dim() == 2 else 0.0).step()
    after = weights(step)
    for name, parameter in dense(step).items():
        short = name.removeprefix("network.")
        settled = parameters[short].grad.abs() > 1e-5
        torch.testing.assert_close(parameter[settled], parameters[short][settled].detach(), rtol=1e-4, atol=1e-4)
    for name, table in tables.items():
        gradient = table.grad
        scale = {
            "sgd": torch.ones(()),
            "adagrad": gradient.abs() + 1e-8,
            "rowwise_adagrad": gradient.pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-8,
        }[optimizer]
        expected = table.detach() - 0.3 * gradient / scale
        settled = gradient.abs() > 1e-5 if optimizer == "adagrad" else torch.ones_like(gradient, dtype=torch.bool)
        torch.testing.assert_close(after[name][settled], expected[settled], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("model", [MODEL, KNOWING["knows everything"]], ids=["paper", "knows everything"])
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_bf16_is_close_to_fp32_and_keeps_weights_in_fp32(data: Data, kind: str, model: NeuralConfig) -> None:
    batch = data.batch(range(12))
    found = {}
    for precision in ("fp32", "bf16"):
        loss = {"kind": kind, "negatives": 20}
        step = make_step(data.manifest, None, model, None, data.known, precision=precision, loss=loss, clip_norm=1e9)
        query_QD = step.predict(batch).query[0]
        losses, norm = step.train(batch, 0, step.weights_of(batch).tolist())
        found[precision] = torch.stack([losses.item, *losses.intents.values()]), norm, query_QD
        assert {value.dtype for value in (*weights(step).values(), query_QD)} == {torch.float32}
    for ours, theirs in zip(found["bf16"], found["fp32"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.05)
    assert not torch.equal(found["bf16"][0], found["fp32"][0])


def test_compiled_feed_forward_layers_give_the_same(data: Data) -> None:
    """With batches of two sizes."""
    results = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
        step = make_step(data.manifest, compile=compiled)
        norms = [
            float(step.train(data.batch(rows), n, (50.0, 50.0))[1]) for n, rows in enumerate((range(12), range(12, 40)))
        ]
        results.append((weights(step), norms))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    same(results[0][0], results[1][0], 1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_workers_take_the_steps_of_one(setting: str, data: Data, two_workers: TwoWorkers) -> None:
    """Uneven parts, and one worker with an empty batch: gradients after one step, weights after one and three."""
    one = steps(data, Path(), Worker(), setting)
    for result in two_workers.result(f"steps/{setting}"):
        same(result["gradients"], one["gradients"], 2e-5)
        same(result["first"], one["first"], 5e-4)
        same(result["third"], one["third"], 2e-3)
        for ours, theirs in zip(result["losses"], one["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
    moved = [name for name, value in one["third"].items() if not torch.equal(value, one["before"][name])]
    assert len(moved) > len(one["third"]) - 3


def test_all_learning_rates_decay_from_epoch_to_epoch(data: Data) -> None:
    """A third of the rates with which the run begins, in the second epoch, is a step of such rates."""
    batch, found = data.batch(range(12)), []
    for epoch, decay, rate in ((1, 1 / 3, 0.3), (0, 1.0, 0.1), (0, 1 / 3, 0.3)):
        tables = {"optimizer": "sgd", "learning_rate": rate}
        step = make_step(data.manifest, decay=decay, learning_rate=rate / 10, tables=tables)
        step.train(batch, 0, step.weights_of(batch).tolist(), epoch)
        found.append(weights(step))
    same(found[0], found[1], 1e-6)
    moved = [not torch.allclose(found[2][name], value, rtol=1e-3, atol=1e-3) for name, value in found[0].items()]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("knows", [[], EVERYTHING], ids=["the paper's scores", "everything"])
def test_an_evaluation_between_two_steps_changes_neither(data: Data, knows: list[Any]) -> None:
    """Nor which values hold the rows of a table that they share, although candidates' attributes are looked up."""
    model = IntentRecConfig(heads=2, dropout=0.3, window="8h", knows=knows)
    results = []
    for evaluating in (False, True):
        shared = {"zch": {"genres": {"size": 5, "interval": 1, "eviction": "lfu"}}}
        step = make_step(data.manifest, model=model, known=data.known, tables=shared)
        for number in range(3):
            batch = data.batch(range(4 * number, 4 * number + 4))
            step.train(batch, number, step.weights_of(batch).tolist())
            before = weights(step)
            if evaluating:
                lookups = dict(step.recommender.tables.lookups)
                validate(step, data.reader("validation", evaluate=True), Worker(), True)
                step.predict(batch)
                assert step.recommender.tables.lookups == lookups
            same(weights(step), before)
        results.append(weights(step))
    same(*results)


def test_the_kernels_that_update_tables_count_steps_alone(data: Data, tmp_path: Path) -> None:
    """An Adam corrects its means by that count: not by the forward passes of validations, and, where training is
    resumed, from where it was, or means that are warm are taken for cold ones."""
    batch, tables = data.batch(range(6)), {"optimizer": "rowwise_adagrad"}  # counts as adam does, on a GPU
    step, other = make_step(data.manifest, tables=tables), make_step(data.manifest, seed=9, tables=tables)

    def counted(step: Step) -> list[tuple[int, int]]:
        return [(int(kernel.iter), int(kernel.iter_cpu)) for kernel in step.kernels]

    for number in range(3):
        step.train(batch, number, step.weights_of(batch).tolist())
        assert counted(step) == [(number + 1, number + 1)]
        validate(step, data.reader("validation", evaluate=True), Worker(), False)
    checkpoints, ours = Checkpoints(str(tmp_path), step.config, Worker()), identity(MODEL, step.config, data.url)
    checkpoints.save(step, Progress(step=3), ours)
    checkpoints.wait()
    assert checkpoints.resume(other, ours).step == 3
    other.train(batch, 3, other.weights_of(batch).tolist())
    assert counted(other) == [(4, 4)]


@pytest.mark.parametrize("kind", ["full", "in_batch", "mixed"])
def test_unknown_targets_have_no_item_loss(kind: str, data: Data, two_workers: TwoWorkers) -> None:
    """In one process and on two workers."""
    _, _, arguments = SCENARIOS[f"unknown/{kind}"]
    alone = unknown_targets(data, Path(), Worker(), **arguments)
    assert [alone, *two_workers.result(f"unknown/{kind}")] == [(0, 0, True)] * 3


def test_the_item_loss_reaches_the_intent_heads(data: Data) -> None:
    model = IntentRecConfig(heads=2, dropout=0.0, window="8h", intent_weight=0.0)
    step, batch = make_step(data.manifest, model=model), data.batch(range(6))
    step.train(batch, 0, step.weights_of(batch).tolist())
    gradients = {name: value for name, value in dense(step, gradients=True).items() if "intent_heads" in name}
    assert len(gradients) == 2 * 4
    assert all(value.abs().max() > 1e-8 for value in gradients.values())


def test_the_learning_rate_warms_up(data: Data) -> None:
    step, batch = make_step(data.manifest, warmup_steps=4), data.batch(range(2))
    rates = []
    for number in range(5):
        step.train(batch, number, step.weights_of(batch).tolist())
        rates.append(step.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
