"""What acts of intents and of ages against loops over queries, candidates and labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ingest.data.batch import Batch, Lists
from ingest.data.manifest import load_manifest
from ingest.features.elapsed import MISSING_TIME
from ingest.features.feature import FIRST_VALUE, dated
from tests.scenarios import EVERYTHING
from tests.small import HOUR, MODEL, Data, make_step, train_config
from trainer.models.deep import DeepConfig
from trainer.models.registry import Knowledge, NeuralConfig
from trainer.recommender import build
from trainer.scores.ages import AgeScores, Calendar, Dates
from trainer.scores.intents import IntentScores, Part, shares

DAY = 24 * HOUR


def labels_of(value: Tensor | Lists, row: int) -> list[int]:
    """The known labels of a row."""
    if isinstance(value, Lists):
        begin = int(value.lengths[:row].sum())
        found = value.values[begin : begin + int(value.lengths[row])].tolist()
    else:
        found = [int(value[row])]
    return [index - FIRST_VALUE for index in found if index >= FIRST_VALUE]


def with_parts(model: NeuralConfig, knows: list[Knowledge]) -> NeuralConfig:
    return model.model_copy(update={"knows": knows})


def drawn(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("part", list(Part))
def test_a_candidate_gains_the_weighted_mean_log_probability_of_its_labels(data: Data, part: Part) -> None:
    batch, scores = data.batch(range(9)), IntentScores(data.manifest)
    drawn(scores)
    logits = {name: torch.randn(batch.tokens, size) for name, size in scores.sizes.items()}
    log_p = scores(logits)
    ours = scores.asked(log_p, part) @ scores.labels(batch.features, batch.tokens).T
    without = 0
    for candidate in range(0, batch.tokens, 5):
        for k in range(0, batch.tokens, 7):
            expected = torch.zeros(())
            for number, (name, size) in enumerate(scores.sizes.items()):
                probability = logits[name][k].softmax(dim=0)
                found = labels_of(batch.features[name], candidate)
                without += not found
                mean = sum(math.log(probability[label]) for label in found or range(size)) / (len(found) or size)
                expected = expected + scores.weights[part, number] * mean
            torch.testing.assert_close(ours[k, candidate], expected, rtol=1e-4, atol=1e-4)
    assert without  # some have no known label


def test_what_is_no_label_of_a_candidate_says_nothing(data: Data) -> None:
    scores = IntentScores(data.manifest)
    name, size = "content_type", scores.sizes["content_type"]
    label = scores.labels({name: torch.tensor([FIRST_VALUE])}, 1)
    assert label.sum() == 1
    assert label.shape == (1, sum(scores.sizes.values()))
    assert shares(torch.tensor([0, 1]), size).tolist() == [[1 / size] * size] * 2
    assert shares(Lists(torch.tensor([2, 1, 3, 3]), torch.tensor([0, 3, 1])), 2).tolist() == [[0.5] * 2] * 2 + [[0, 1]]


def test_gates_are_linear_in_all_log_probabilities(data: Data) -> None:
    scores = IntentScores(data.manifest)
    drawn(scores)
    log_p = scores({name: torch.randn(4, size) for name, size in scores.sizes.items()})
    gates = log_p @ scores.gates.weight.T + scores.gates.bias
    history = scores.acting(log_p, torch.empty(0), Part.HISTORY).gates(5, own=-1, same=1)
    torch.testing.assert_close(history[:, [4, 1]], gates[:, :2])
    assert not history[:, [0, 2, 3]].any()
    torch.testing.assert_close(scores.acting(log_p, torch.empty(0), Part.RECENT).own_N, gates[:, 2])


@pytest.mark.parametrize(("acts", "trained"), [(False, 99), (True, 99), (False, 1)])
def test_an_item_gains_what_its_age_in_days_says(data: Data, acts: bool, trained: int) -> None:
    """Also where training ends long before the log, after `trained` days: in the last ones, and of items from them."""
    last = min(data.manifest.first_time + trained * DAY, data.manifest.last_time)
    manifest = data.manifest.model_copy(update={"last_time": last})
    feature = dated(manifest.features)
    assert feature is not None
    released, unreleased = data.items.columns["release_age"].copy(), 0  # type: ignore[union-attr]
    released[5::7] = data.manifest.last_time + 3 * DAY
    released[6::7] = data.manifest.last_time - DAY
    items_then = replace(data.items, columns=data.items.columns | {"release_age": released})
    ages, dates = AgeScores(manifest, feature, 8, acts), Dates(manifest, items_then, torch.device("cpu"))
    drawn(ages)
    batch: Batch = data.batch(range(12))
    time_Q = batch.request_time_T[batch.target_position_Q][::9]
    query, items = torch.randn(len(time_Q), 8), torch.arange(data.manifest.catalogue)
    log_p = torch.randn(len(time_Q), 3).log_softmax(dim=1) if acts else None
    ours = ages.asked(query, time_Q, log_p)[:, dates.of(items)]
    for q, time in enumerate(time_Q.tolist()):
        said = ages.linear(query[q])
        for item in range(FIRST_VALUE, data.manifest.catalogue):
            date = int(released[item])
            age = time // DAY - date // DAY if date != MISSING_TIME else 10**6
            unreleased += age < 0
            edges = [0, 1, 2, 4, 7, 8, 16, 30, 32, 64, 128, 256, 512, 1024]
            place = sum(age >= edge for edge in edges if edge in ages.edges)
            expected = said[place]
            if log_p is not None:
                expected = expected + ages.intent * log_p[q, sum(age >= edge for edge in (7, 30))]
            torch.testing.assert_close(ours[q, item], expected, rtol=1e-4, atol=1e-4)
    assert unreleased
    assert set(ages.edges) >= {0, 7, 30}


def test_an_item_is_not_out_before_its_day_long_after_the_log(data: Data) -> None:
    """Up to 30 days after; what comes out later still is never out."""
    feature, end = dated(data.manifest.features), data.manifest.end
    assert feature is not None
    released = data.items.columns["release_age"].copy()  # type: ignore[union-attr]
    released[2:5] = end + torch.tensor([10, 30, 31]).numpy() * DAY
    items = replace(data.items, columns=data.items.columns | {"release_age": released})
    ages, dates = AgeScores(data.manifest, feature, 8, acts=False), Dates(data.manifest, items, torch.device("cpu"))
    with torch.no_grad():
        ages.linear.bias.copy_(torch.arange(len(ages.linear.bias)))
    time_Q = end + torch.tensor([1, 3, 9, 10, 29, 30, 99]) * DAY
    bin_QC = ages.asked(torch.zeros(len(time_Q), 8), time_Q, None)[:, dates.of(torch.arange(2, 5))]
    assert (bin_QC > 0).T.tolist() == [[False] * 3 + [True] * 4, [False] * 5 + [True] * 2, [False] * 7]


def test_a_feature_whose_ages_are_all_alike_has_one_bin(data: Data) -> None:
    feature = dated(data.manifest.features)
    assert feature is not None
    ages = AgeScores(data.manifest, feature.model_copy(update={"edges": []}), 8, acts=True)
    assert not ages.label_A.any()


def test_a_log_of_many_years_counts_in_spans_of_days(data: Data) -> None:
    manifest = load_manifest(data.url)
    feature = dated(manifest.features)
    assert feature is not None
    end = manifest.first_time + 9000 * DAY
    decades = Calendar(manifest.model_copy(update={"last_time": end, "newest_time": end}), feature)
    assert decades.days <= 1024
    assert decades.span == 9 * DAY
    ends = decades.of(torch.tensor([manifest.first_time - 30 * DAY, manifest.first_time + 9000 * DAY]))
    assert 0 <= ends[0] < ends[1] < decades.days - 1
    for days in (1000, 1019):  # with more columns than days, but fewer than for all days ahead
        end = manifest.first_time - 30 * DAY + days * DAY
        calendar = Calendar(manifest.model_copy(update={"last_time": end, "newest_time": end}), feature)
        assert calendar.days <= 1024
        assert calendar.of(torch.tensor(end)) < calendar.days - 2


def test_a_models_first_scores_are_those_without_the_parts(data: Data, alone: None) -> None:
    batch, found = data.batch(range(9)), []
    for knows in (["history", "recent"], ["history", "recent", "age", "intents"]):
        step = make_step(data.manifest, model=with_parts(MODEL, knows), known=data.known)
        found.append(step.losses(step.prepare(batch, 0)).item)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("knows", [["age"], ["intents"], ["intents", "history"], ["intents", "recent"]])
def test_each_part_can_be_alone(data: Data, knows: list[Knowledge], alone: None) -> None:
    """Every parameter has a gradient, on which DDP insists."""
    batch, step = data.batch(range(9)), make_step(data.manifest, model=with_parts(MODEL, knows), known=data.known)
    step.train(batch, 0, step.weights_of(batch).tolist())
    assert all(parameter.grad is not None for parameter in step.dense.values())


@pytest.mark.parametrize("model", [MODEL, DeepConfig(heads=2, dropout=0.0, window="8h")], ids=["intentrec", "deep"])
def test_every_weight_of_the_parts_is_trained(data: Data, model: NeuralConfig, alone: None) -> None:
    batch, knows = data.batch(range(9)), list[Knowledge](["history", "recent", "age", "intents"])
    step = make_step(data.manifest, model=with_parts(model, knows), known=data.known)
    step.train(batch, 0, step.weights_of(batch).tolist())
    step.train(batch, 1, step.weights_of(batch).tolist())
    scores = step.recommender.scores
    assert scores.intents is not None
    assert scores.ages is not None
    for parameter in (scores.intents.weights, scores.intents.gates.weight, scores.ages.linear.weight):
        assert parameter.any()


def test_the_control_has_the_same_heads_and_no_loss_of_its_own(data: Data) -> None:
    intentrec, deep = (
        build(with_parts(model, EVERYTHING), train_config(), data.manifest)
        for model in (MODEL, DeepConfig(heads=2, dropout=0.0, window="8h"))
    )
    heads = {name: p.shape for name, p in intentrec.network.intent_heads.named_parameters()}  # type: ignore[union-attr]
    assert heads == {name: p.shape for name, p in deep.network.heads.named_parameters()}  # type: ignore[union-attr]
    assert DeepConfig().weight_of_intents == 0
