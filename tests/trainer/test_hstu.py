"""HSTU's attention by explicit loops over users, places and heads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.small import HOUR, Data, train_config
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.hstu import HSTUConfig
from trainer.recommender import build

LENGTHS = [1, 3, 3, 9, 20]
HEADS, SIZE, N = 2, 4, 20


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def norm(module: torch.nn.Module, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)


def block_alone(block: torch.nn.Module, x_LD: Tensor, time_L: Tensor, now_L: Tensor) -> Tensor:
    """One block and one user: each head's query i against each key j up to it."""
    u, v, q, k = silu(norm(block.norm, x_LD) @ block.uvqk.weight.T).split(HEADS * SIZE, dim=1)
    rows = []
    for i in range(len(x_LD)):
        attended = torch.zeros(HEADS * SIZE, dtype=x_LD.dtype)
        for head in range(HEADS):
            part = slice(head * SIZE, (head + 1) * SIZE)
            for j in range(i + 1):
                score = q[i, part] @ k[j, part] + block.place[i - j]
                if block.gap is not None:
                    seconds = max(1, (int(now_L[i]) - int(time_L[j])) // 1000)
                    score = score + block.gap[int(math.log(seconds) / 0.301)]
                attended[part] += silu(score) / N * v[j, part]
        rows.append(block.out(norm(block.attended_norm, attended) * u[i]))
    return x_LD + torch.stack(rows)


@pytest.mark.parametrize("request_known", [False, True])
@pytest.mark.parametrize("times", [False, True])
def test_a_batch_equals_each_user_in_loops(times: bool, request_known: bool, data: Data) -> None:
    """Outputs, and gradients of the inputs and of every weight."""
    model = HSTUConfig(heads=HEADS, dropout=0.0, times=times, layers=2)
    encoder = build(model, train_config(), data.manifest).network.encoder.double()
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_TD = torch.randn(sum(LENGTHS), HEADS * SIZE, dtype=torch.float64, requires_grad=True)
    time_T = torch.cat([torch.randint(0, 5 * HOUR, (n,)).cumsum(0) for n in LENGTHS])
    inputs = Inputs(
        {}, x_TD[:, :0], time_T, torch.cat([torch.arange(n) for n in LENGTHS]), Layout(torch.tensor(LENGTHS))
    )
    if request_known:
        inputs = replace(inputs, request_time_T=time_T + torch.randint(0, 9 * HOUR, time_T.shape))
    ours = encoder(x_TD, inputs)
    rows = []
    for x_LD, time_L, now_L in zip(*(part.split(LENGTHS) for part in (x_TD, time_T, inputs.now_T)), strict=True):
        for block in encoder.blocks:
            x_LD = block_alone(block, x_LD, time_L, now_L)
        rows.append(norm(encoder.norm, x_LD))
    theirs = torch.cat(rows)
    torch.testing.assert_close(ours, theirs)
    weight, wanted = torch.randn_like(theirs), [x_TD, *encoder.parameters()]
    assert (encoder.blocks[0].gap is not None) == times
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_times_are_a_bias_and_no_input(data: Data) -> None:
    for times in (False, True):
        names = [
            name for name, _ in build(HSTUConfig(times=times), train_config(), data.manifest).network.named_parameters()
        ]
        assert not any("timestamp" in name for name in names)
        assert any(name.endswith("gap") for name in names) == times
