"""The models: nothing of the future leaks, batches do not mix, and IntentRec's formulas are those of the paper."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ingest.arrays.jagged import Jagged
from ingest.data.batch import Batch
from ingest.data.schema import DataConfig
from ingest.data.shards import StoredRows
from tests.models import KINDS, knowing_all
from tests.small import HOUR, MODEL, Data, make_step, take_rows, train_config
from trainer.attention import Layout
from trainer.layers import Inputs, ShortTerm, project
from trainer.models.deep import DeepConfig
from trainer.models.gru import GRUConfig
from trainer.models.intentrec import IntentRecConfig
from trainer.models.lstm import LSTMConfig
from trainer.models.registry import MomentsConfig, NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.recommender import Prediction, build
from trainer.step import Step

MODELS = KINDS | {
    "with history and attributes": MODEL.model_copy(update={"knows": ["history", "attributes"]}),
    "sasrec with history": SASRecConfig(heads=2, dropout=0.0, knows=["history"]),
    "gru with history and intents": KINDS["gru"].model_copy(update={"knows": ["history", "intents"]}),
}
KNOWS = {"request": ["request"], "request and history": ["history", "request"], "recent": ["recent"]}
WITH_REQUEST = {
    f"{name}, {parts}": (kind, knows)
    for name, kind in KINDS.items()
    for parts, knows in KNOWS.items()
    if not (kind.kind == "bert4rec" and "history" in knows)
}


def changed(rows: StoredRows, data: Data, at: int) -> StoredRows:
    """One row whose interaction `at` has another item, a later time, and other event features."""
    columns: dict[str, Any] = {name: column for name, column in rows.columns.items() if name != "tags"}
    columns = copy.deepcopy(columns)
    columns["item"][at] = 2 + (columns["item"][at] + 5) % (data.manifest.items - 2)
    columns["time"][at:] += 100 * HOUR
    columns["action"][at] = 2 + (columns["action"][at] + 1) % 3
    columns["scroll"][at] += 3.0
    lists = rows.columns["tags"]
    assert isinstance(lists, Jagged)
    tags = np.split(lists.values, lists.offsets[1:-1])
    tags[at] = np.array([2, 3, 4, 4], dtype=tags[at].dtype)
    columns["tags"] = Jagged.from_lengths(np.concatenate(tags), np.array([len(part) for part in tags]))
    return replace(rows, columns=columns)


def outputs(step: Step, batch: Batch) -> torch.Tensor:
    """Queries, intents and the candidates of each target's own side by side, by position."""
    prediction: Prediction = step.predict(batch)
    candidates = [part.float().nan_to_num(neginf=-1e4) for part in prediction.query[1:]]
    return torch.cat([prediction.query[0], *prediction.intents.values(), *candidates], dim=1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_future_and_the_target_change_no_earlier_prediction(model: NeuralConfig, data: Data) -> None:
    step = make_step(data.manifest, model=model, known=data.known)
    lengths = data.rows.lengths
    row = take_rows(data.rows, np.array([int(np.flatnonzero((lengths > 8) & (lengths <= 20))[0])]))
    n = int(row.lengths[0])
    before = outputs(step, data.builder.build(row))
    assert len(before) == n - 1
    for at in (1, n // 2, n - 2, n - 1):
        after = outputs(step, data.builder.build(changed(row, data, at)))
        torch.testing.assert_close(after[:at], before[:at], rtol=1e-6, atol=1e-6)
        if at < n - 1:
            assert (after[at:] - before[at:]).abs().amax(dim=1).min() > 1e-6


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("kind", "knows"), WITH_REQUEST.values(), ids=WITH_REQUEST)
def test_of_the_next_interaction_the_request_alone_is_known(kind: NeuralConfig, knows: list[str], data: Data) -> None:
    """Its time and its device; its item and its other features change nothing before them."""
    step = make_step(data.manifest, model=kind.model_copy(update={"knows": knows}), known=data.known)
    for name, parameter in step.dense.items():
        if "scores." in name:  # the request's part begins as zero
            torch.nn.init.normal_(parameter, std=0.3)
    lengths = data.rows.lengths
    row = take_rows(data.rows, np.array([int(np.flatnonzero((lengths > 8) & (lengths <= 20))[0])]))
    before, at = outputs(step, data.builder.build(row)), 5
    other = changed(row, data, at)
    other.columns["time"][:] = row.columns["time"]
    after = outputs(step, data.builder.build(other))
    torch.testing.assert_close(after[:at], before[:at], rtol=1e-6, atol=1e-6)
    for name in ["time", *(["device"] if knows[-1] == "request" and kind.reads_features else [])]:
        other = take_rows(row, np.array([0]))
        other.columns[name][at:] += 100 * HOUR if name == "time" else 1
        if name == "device":
            other.columns[name][at + 1 :] -= 1
            other.columns[name][at] = 2 + (row.columns[name][at] - 1) % 3
        after = outputs(step, data.builder.build(other))
        torch.testing.assert_close(after[: at - 1], before[: at - 1], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(after[at - 1], before[at - 1], rtol=1e-4, atol=1e-4), name


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_sequence_alone_is_predicted_as_in_a_batch(model: NeuralConfig, data: Data) -> None:
    step = make_step(data.manifest, model=model, known=data.known)
    batch = data.batch(range(25))
    together = outputs(step, batch)
    for row in range(25):
        alone = outputs(step, data.batch([row]))
        torch.testing.assert_close(together[batch.row_Q == row], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_a_network_can_be_built_on_the_meta_device(model: NeuralConfig, data: Data) -> None:
    with torch.device("meta"):
        network = model.network(data.manifest, 8, 20)
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.usefixtures("alone")
def test_attention_over_intents_sums_to_one(data: Data) -> None:
    prediction = make_step(data.manifest).predict(data.batch(range(9)))
    assert prediction.attention_QM is not None
    assert prediction.attention_QM.shape[1] == len(prediction.intents) == 4
    torch.testing.assert_close(prediction.attention_QM.sum(dim=1), torch.ones(len(prediction.query[0])))
    assert prediction.attention_QM.min() > 0


def test_the_aggregation_equals_the_papers_formulas(data: Data) -> None:
    network = build(MODEL, train_config(), data.manifest).network
    torch.manual_seed(2)
    intents = {name: torch.randn(5, labels) for name, labels in network.labels.items()}
    ours_TD, attention_TM = network.aggregate(intents)
    for k in range(5):
        projected = [network.projections[f"intent_{name}"](logits[k].softmax(0)) for name, logits in intents.items()]
        scores = torch.stack([network.attention(vector)[0] for vector in projected])
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(attention_TM[k], weights)
        torch.testing.assert_close(ours_TD[k], sum(w * v for w, v in zip(weights, projected, strict=True)))


def test_short_term_interest_sees_the_window_and_no_more() -> None:
    """A token reaches those that come up to H after it, H included."""
    torch.manual_seed(0)
    window, width = 10, 6
    short_term = ShortTerm(width, 8, 2, 0.0, window).eval()
    time = torch.tensor([0, 0, 4, 10, 11, 14, 20, 21, 50])
    n = len(time)
    features, encoded = torch.randn(n, width), torch.randn(n, 8)
    inputs = Inputs({}, torch.zeros(n, 0), time, torch.arange(n), Layout(torch.tensor([n])))
    before = short_term(*project([short_term.join], features), encoded, inputs)
    for j in range(n):
        other = features.clone()
        other[j] = torch.randn(width)
        moved = (short_term(*project([short_term.join], other), encoded, inputs) - before).abs().amax(dim=1) > 1e-7
        assert moved.tolist() == [k >= j and int(time[k] - time[j]) <= window for k in range(n)]


def test_intentrec_needs_an_intent() -> None:
    with pytest.raises(ValueError, match="kind: intentrec needs a feature with `intent: true`"):
        IntentRecConfig().check(DataConfig(events="events"), train_config())


@pytest.mark.parametrize(
    ("model", "unit", "message"),
    [
        (SASRecConfig(heads=3), "time", "heads: 3 do not divide train.tables.dimension, 8"),
        (DeepConfig(window="1h"), "position", "window: with this data.time_unit it takes a number of positions"),
        (DeepConfig(window=5), "time", "window: with this data.time_unit it takes a span of time"),
        (SASRecConfig(knows=["request"]), "position", "knows: request needs real times, not time_unit position"),
        (SASRecConfig(knows=["history", "recent"]), "position", "knows: recent needs real times"),
        (
            SASRecConfig(knows=["recent"], moments=MomentsConfig(by="device")),
            "time",
            "moments.by: takes a feature with `at_request: true` that the model reads, got 'device'; allowed: none",
        ),
        (SASRecConfig(knows=["attributes"]), "time", "knows: attributes needs a category feature with `of: item`"),
        (DeepConfig(knows=["age"]), "time", "knows: age needs a feature of kind elapsed with `of: item`"),
        (DeepConfig(knows=["intents"]), "time", "knows: intents needs a feature with `intent: true`"),
        (SASRecConfig(knows=["intents"]), "time", "knows: intents needs a model with heads for them; kind: sasrec"),
        (GRUConfig(intents=["action", "mood"]), "time", "intents: takes those of data.features, none; got 'action'"),
        (LSTMConfig(intent_weight=0.5), "time", "intent_weight: there is no intent to weigh, got 0.5"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: NeuralConfig, unit: str, message: str) -> None:
    data = DataConfig.model_validate({"events": "events", "time_unit": "ms" if unit == "time" else unit})
    with pytest.raises(ValueError, match=message):
        model.check(data, train_config())


def test_a_date_that_the_future_gives_is_no_age() -> None:
    """When an item is first taken tells the target."""
    feature = {"name": "age", "kind": "elapsed", "of": "item", "since_first_event": True, "bins": ["1d"]}
    data = DataConfig.model_validate({"events": "events", "items": "items", "features": [feature]})
    SASRecConfig(knows=["recent"]).check(data, train_config())
    with pytest.raises(ValueError, match="knows: age needs dates that are known before; 'age' has `since_first_event"):
        SASRecConfig(knows=["age"]).check(data, train_config())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"knows": ["history", "history"]}, "takes each part once, got history, history"),
        ({"knows": ["future"]}, "'request', 'history', 'attributes', 'recent', 'transitions', 'age' or 'intents'"),
        ({"moments": {"step": "7m"}}, "takes a multiple of 5m, such as 15m or 1d"),
        ({"moments": {"refresh": "0m"}}, "takes a multiple of 5m, such as 15m or 1d"),
        ({"moments": {"items": 0}}, "greater than or equal to 1"),
        ({"cold_share": 1.1}, "less than or equal to 1"),
        ({"intents": ["action", "action"]}, "takes each intent once, got action, action"),
    ],
)
def test_what_scores_can_not_know_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SASRecConfig.model_validate(section)


@pytest.mark.usefixtures("alone")
def test_scores_that_need_the_data_set_say_so(data: Data) -> None:
    with pytest.raises(ValueError, match="a model that knows history, recent needs the data set, got None"):
        make_step(data.manifest, model=SASRecConfig(knows=["history", "recent"]))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", map(knowing_all, KINDS.values()), ids=KINDS)
def test_every_kind_trains_with_scores_that_know_all_it_can(data: Data, model: NeuralConfig) -> None:
    """Every parameter has a gradient, on which DDP insists, of the empty batch too, whose loss is 0."""
    step = make_step(data.manifest, model=model, known=data.known)
    losses, norm = step.train(data.builder.empty(), 0, (3.0, 3.0))
    assert losses.item == 0
    assert norm == 0
    assert all(parameter.grad is not None for parameter in step.dense.values())
    assert outputs(step, data.builder.empty()).shape[0] == 0
    batch = step.asking(data.batch(range(6)), 0)
    losses, norm = step.train(batch, 1, step.weights_of(batch).tolist())
    assert losses.item > 0
    assert 0 < norm < float("inf")
    assert all(parameter.grad is not None for parameter in step.dense.values())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_every_kind_is_close_to_itself_in_bf16(data: Data, model: NeuralConfig) -> None:
    batch, found = data.batch(range(9)), []
    for precision in ("fp32", "bf16"):
        step = make_step(data.manifest, model=model, known=data.known, precision=precision, clip_norm=1e9)
        query_QD = step.predict(batch).query[0]
        assert query_QD.dtype == torch.float32
        losses, _ = step.train(batch, 0, step.weights_of(batch).tolist())
        found.append([query_QD, losses.item])
    for half, single in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(half, single, rtol=0.03, atol=0.06)
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.usefixtures("alone")
def test_the_empty_batch_gives_no_target_and_finite_gradients(data: Data) -> None:
    step = make_step(data.manifest)
    losses, norm = step.train(data.builder.empty(), 0, (3.0, 3.0))
    assert losses.item == 0
    assert norm == 0
    assert outputs(step, replace(data.builder.empty())).shape[0] == 0
