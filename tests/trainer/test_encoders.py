"""Models of one and of two encoders, and their switches, against the formulas that they stand for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ingest.data.batch import Batch
from tests.models import KINDS
from tests.small import Data, make_step, make_trainer, train_config
from trainer.attention import Layout
from trainer.layers import GatedBlock, Inputs
from trainer.models.deep import DeepConfig
from trainer.models.intentrec import IntentRecConfig
from trainer.models.lstm import LSTMConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.models.transformer import TransformerModelConfig
from trainer.recommender import build


def inputs_of(data: Data, batch: Batch, features: bool = True) -> Inputs:
    """A batch's inputs with drawn vectors."""
    torch.manual_seed(0)
    known = [feature.name for feature in data.manifest.features if features and not feature.is_number]
    vectors = {name: torch.randn(batch.tokens, 8) for name in ["item", *known]}
    numbers = torch.randn(batch.tokens, int(features))
    return Inputs(vectors, numbers, batch.time_T, batch.position_T, Layout(batch.lengths_B))


def test_a_gated_block_equals_its_formulas() -> None:
    """x + sigmoid(W x) * f(norm(x)), for the attention and for the feed-forward layer."""
    torch.manual_seed(0)
    block, layout = GatedBlock(8, 2, 0.0, 4).double(), Layout(torch.tensor([2, 5, 5]))
    x = torch.randn(12, 8, dtype=torch.float64)
    attended = block.attention(F.layer_norm(x, (8,), *block.attention_norm.parameters()), layout)
    first, second = block.gates
    middle = x + torch.sigmoid(x @ first.weight.T + first.bias) * attended
    norm, swiglu, _ = block.feed_forward
    normed = F.layer_norm(middle, (8,), *norm.parameters())
    gate, value = (normed @ swiglu.widen.weight.T).split(32, dim=1)
    fed = (gate * torch.sigmoid(gate) * value) @ swiglu.narrow.weight.T
    expected = middle + torch.sigmoid(middle @ second.weight.T + second.bias) * fed
    torch.testing.assert_close(block(x, layout), expected)


@pytest.mark.parametrize("features", [False, True])
def test_one_encoder_reads_items_or_all_of_f(features: bool, data: Data) -> None:
    model = TransformerModelConfig(heads=2, features=features)
    network, batch = build(model, train_config(), data.manifest).network.eval(), data.batch([0, 1, 2])
    inputs = inputs_of(data, batch, features)
    entry = network.entry
    places = entry.positions.place(batch.position_T) + entry.positions.timestamp(inputs)
    vectors = torch.cat(list(inputs.vectors.values()), dim=1) * math.sqrt(8)
    if features:
        expected = entry.join.norm(entry.join.linear(torch.cat([vectors, inputs.numbers_Tn], dim=1))) + places
    else:
        expected = vectors + places
    torch.testing.assert_close(entry(inputs), expected, rtol=1e-4, atol=1e-5)
    query_TD = network.encoder(expected, inputs.layout)
    output = network(inputs)
    torch.testing.assert_close(output.query_TD, query_TD, rtol=1e-4, atol=1e-5)
    assert list(output.intents) == ["action", "genres", "content_type", "release_age"]
    for name, logits in output.intents.items():
        torch.testing.assert_close(logits, network.heads[f"intent_{name}"](query_TD), rtol=1e-4, atol=1e-5)


def test_sasrec_is_the_transformer_of_items_and_places(data: Data) -> None:
    """It has no weight for times, features or intents."""
    plain = TransformerModelConfig(features=False, times=False, intents=[])
    found = [build(model, train_config(), data.manifest).network.state_dict() for model in (SASRecConfig(), plain)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert {name.split(".")[0] for name in found[0]} == {"entry", "encoder"}
    assert [name for name in found[0] if name.startswith("entry")] == ["entry.positions.place.weight"]


def test_without_a_window_there_is_no_short_term_interest(data: Data) -> None:
    """The encoders' inputs are F, and F with Z."""
    model = IntentRecConfig(heads=2, window=None)
    network, batch = build(model, train_config(), data.manifest).network.eval(), data.batch([0, 1, 2])
    inputs = inputs_of(data, batch)
    features = torch.cat([*(v * math.sqrt(8) for v in inputs.vectors.values()), inputs.numbers_Tn], dim=1)
    first, second = network.positions(inputs)
    x = network.intent_input.norm(network.intent_input.linear(features)) + first
    intents = network.intent_heads(network.intent_encoder(x, inputs.layout))
    z = network.aggregate(intents)[0]
    x = network.item_input.norm(network.item_input.linear(torch.cat([features, z], dim=1))) + second
    torch.testing.assert_close(network(inputs).query_TD, network.item_encoder(x, inputs.layout), rtol=1e-4, atol=1e-4)
    assert not any("short_term" in name for name, _ in network.named_parameters())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", [*KINDS.values(), DeepConfig(knows=["intents"])], ids=[*KINDS, "deep that knows"])
def test_a_model_predicts_the_intents_that_it_names(model: NeuralConfig, data: Data) -> None:
    named = ["genres", "action"]
    step = make_step(data.manifest, model=model.model_copy(update={"intents": named}), known=data.known)
    prediction, batch = step.predict(data.batch(range(5))), data.batch(range(5))
    if model.kind != "deep":
        assert list(prediction.intents) == ["action", "genres"]
    if prediction.attention_QM is not None:
        assert prediction.attention_QM.shape[1] == 2
    losses, _ = step.train(batch, 0, step.weights_of(batch).tolist())
    assert losses.intents.keys() == prediction.intents.keys()
    assert all(parameter.grad is not None for parameter in step.dense.values())


@pytest.mark.usefixtures("alone")
def test_a_model_of_items_alone_learns_intents_from_columns_that_are_no_inputs(data: Data, tmp_path: Path) -> None:
    model = LSTMConfig(features=False, times=False, knows=["intents"])
    trainer = make_trainer(data.url, tmp_path, model=model, epochs=1)
    assert trainer.step.recommender.tables.names == ["item"]
    progress = trainer.fit()
    losses = [loss for _, loss in progress.train_curve]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trainer.validate(trainer.step).intents.keys() == {"action", "genres", "content_type", "release_age"}
