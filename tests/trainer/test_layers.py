"""Parts that the models share, against what they stand for."""

from __future__ import annotations

import math

import pytest
import torch

import trainer.layers
from tests.small import MODEL, Data, train_config
from trainer.attention import Layout
from trainer.layers import Block, Dropout, Inputs, project
from trainer.recommender import build


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.001])
def test_dropout_keeps_its_share_and_scales_the_rest(rate: float) -> None:
    """The share within five standard deviations, neighbours independent, gradients through the same mask."""
    torch.manual_seed(5)
    dropout, x = Dropout(rate), torch.ones(1001, 333, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    assert kept.double().mean().item() == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / x.numel()))
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)), rtol=2e-5, atol=0)
    flat = kept.flatten().double()
    for lag in (1, 2, 3, 4):
        both = ((1 - flat[lag:]) * (1 - flat[:-lag])).sum().item()
        assert both == pytest.approx(rate**2 * len(flat), abs=5 * math.sqrt(rate**2 * len(flat)) + 1)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_dropout_depends_on_the_seed_and_is_none_in_evaluation() -> None:
    dropout, x = Dropout(0.3), torch.randn(50, 7)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout(x) == 0)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.999999)(x).isfinite().all()


def test_encoders_inputs_are_products_with_the_concatenation(data: Data) -> None:
    network, batch = build(MODEL, train_config(), data.manifest).network.eval(), data.batch([0, 1, 2])
    names = ["item", *(feature.name for feature in data.manifest.features if not feature.is_number)]
    vectors = {name: torch.randn(batch.tokens, 8) for name in names}
    numbers = torch.randn(batch.tokens, 1)
    inputs = Inputs(vectors, numbers, batch.time_T, batch.position_T, Layout(batch.lengths_B))
    features = torch.cat([torch.cat(list(vectors.values()), dim=1) * math.sqrt(8), numbers], dim=1)
    short, aggregated = torch.randn(batch.tokens, 8), torch.randn(batch.tokens, 8)
    joined = [network.short_term.join, network.intent_input, network.item_input]
    projected = project(joined, network.features(inputs), network.features.scale)
    for part, own, others in zip(joined, projected, ([], [short], [short, aggregated]), strict=True):
        expected = part.norm(part.linear(torch.cat([features, *others], dim=1)))
        torch.testing.assert_close(part(own, *others), expected, rtol=1e-4, atol=1e-5)


def test_a_feed_forward_layer_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a batch that does not fit the cache takes it: outputs and gradients."""
    torch.manual_seed(0)
    block, layout = Block(8, 2, 0.0, 4).double(), Layout(torch.tensor([3, 9, 20]))
    x = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for at_once in (2048, 5):
        monkeypatch.setattr(trainer.layers, "IN_CACHE", at_once)
        out = block(x, layout)
        found.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), [x, *block.parameters()])])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)
