"""Recurrent models against torch's own cells, a user at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.small import Data, train_config
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.base import RecurrentConfig
from trainer.models.gru import GRUConfig
from trainer.models.lstm import LSTMConfig
from trainer.recommender import build
from trainer.recurrent import Recurrent, packing


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_each_step_has_the_tokens_of_all_sequences_that_are_so_long(lengths: list[int]) -> None:
    lengths = sorted(lengths)
    begins = [sum(lengths[:number]) for number in range(len(lengths))]
    steps = [
        [begin + step for begin, length in zip(begins, lengths, strict=True) if length > step][::-1]
        for step in range(lengths[-1])
    ]
    token_T, count_S = packing(torch.tensor(lengths))
    assert token_T.tolist() == [token for step in steps for token in step]
    assert count_S.tolist() == [len(step) for step in steps]


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_a_batch_equals_each_sequence_alone(cell: type[nn.GRU] | type[nn.LSTM]) -> None:
    """Outputs, and gradients of inputs and weights; the plain layers have the same weights, two in one module."""
    torch.manual_seed(0)
    lengths, dimension, width = [1, 1, 3, 4, 4, 12], 6, 9
    ours = Recurrent(cell, dimension, width, 2, 0.0).double()
    plain = cell(dimension, width, num_layers=2).double()
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for name, parameter in layer.named_parameters():
                getattr(plain, name.replace("_l0", f"_l{number}")).copy_(parameter)
    x_TD = torch.randn(sum(lengths), dimension, dtype=torch.float64, requires_grad=True)
    inputs = Inputs({}, x_TD[:, :0], torch.zeros(0), torch.zeros(0), Layout(torch.tensor(lengths)))
    found = ours(x_TD, inputs)
    expected = torch.cat([ours.out(plain(part_LD)[0]) for part_LD in x_TD.split(lengths)])
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    theirs = [plain.weight_hh_l0, plain.bias_ih_l1, ours.out.weight, x_TD]
    mine = [ours.layers[0].weight_hh_l0, ours.layers[1].bias_ih_l0, ours.out.weight, x_TD]
    pairs = zip(
        torch.autograd.grad((found * weight).sum(), mine),
        torch.autograd.grad((expected * weight).sum(), theirs),
        strict=True,
    )
    for left, right in pairs:
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("config", [GRUConfig, LSTMConfig])
def test_without_features_and_times_items_alone_are_read(config: type[RecurrentConfig], data: Data) -> None:
    model = config(features=False, times=False, intents=["action"])
    network, batch = build(model, train_config(), data.manifest).network.eval(), data.batch([0, 1, 2])
    item_TD = torch.randn(batch.tokens, 8)
    inputs = Inputs({"item": item_TD}, item_TD[:, :0], batch.time_T, batch.position_T, Layout(batch.lengths_B))
    output = network(inputs)
    assert list(output.intents) == ["action"]
    for query_LD, part_LD in zip(*(x.split(batch.lengths_B.tolist()) for x in (output.query_TD, item_TD)), strict=True):
        state_Lh = network.encoder.layers[0](part_LD * math.sqrt(8))[0]
        torch.testing.assert_close(query_LD, network.encoder.out(state_Lh), rtol=1e-4, atol=1e-5)
