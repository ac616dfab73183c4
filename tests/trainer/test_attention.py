"""Jagged attention against each sequence alone, with explicit masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainer.attention
from trainer.attention import Attention, Layout, Window

LENGTHS = [1, 1, 3, 4, 4, 12, 15, 40]
D, HEADS = 8, 2


def alone(attention: Attention, x_LD: Tensor, allowed_LL: Tensor) -> Tensor:
    """One sequence in plain formulas: query i sees key j where `allowed_LL`."""
    q, k, v = attention.qkv(x_LD).split(D, dim=1)
    size = D // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part] @ k[:, part].T / size**0.5).masked_fill(~allowed_LL, -torch.inf)
        heads.append(scores.softmax(dim=1) @ v[:, part])
    return attention.out(torch.cat(heads, dim=1))


@pytest.mark.parametrize(("window", "causal"), [(None, True), (0, True), (5, True), (None, False)])
@pytest.mark.parametrize("padding", [0.1, 0.0, 1.0])
@pytest.mark.parametrize(("most_products", "rows"), [(256, 100), (256, 6), (12, 1), (0, 1)])
def test_a_batch_equals_each_sequence_alone(
    window: int | None, causal: bool, padding: float, most_products: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batched products, whole and in blocks, with the kernel, and with both."""
    monkeypatch.setattr(trainer.attention, "MOST_PRODUCTS", most_products)
    monkeypatch.setattr(trainer.attention, "ROWS", rows)
    torch.manual_seed(0)
    attention = Attention(D, HEADS, causal).double()
    x_TD = torch.randn(sum(LENGTHS), D, dtype=torch.float64, requires_grad=True)
    time_T = torch.cat([torch.randint(0, 4, (length,)).cumsum(0) for length in LENGTHS])
    layout = Layout(torch.tensor(LENGTHS), padding=padding)
    ours = attention(x_TD, layout, None if window is None else Window(layout, time_T, window))
    parts = []
    for x_LD, time_L in zip(x_TD.split(LENGTHS), time_T.split(LENGTHS), strict=True):
        index = torch.arange(len(x_LD))
        allowed = (index[None] <= index[:, None]) | (not causal)
        if window is not None:
            allowed = allowed & (time_L[:, None] - time_L[None] <= window)
        parts.append(alone(attention, x_LD, allowed))
    theirs = torch.cat(parts)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(theirs)
    wanted = [x_TD, *attention.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wanted),
        torch.autograd.grad((theirs * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_window_over_jagged_tokens_equals_that_over_padded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients, which flex_attention has in eager mode on a CPU where it is let; and each block of which a
    token sees another is worked on, in the forward pass and in the backward pass, which goes by columns."""
    monkeypatch.setattr(trainer.attention, "BLOCK", 16)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    torch.manual_seed(0)
    attention, layout = Attention(D, HEADS), Layout(torch.tensor(LENGTHS))
    time_T = torch.cat([torch.randint(0, 4, (length,)).cumsum(0) for length in LENGTHS])
    window, x_TD = Window(layout, time_T, 20), torch.randn(sum(LENGTHS), D, requires_grad=True)
    jagged_TD, padded_TD = attention.out(window.attend(attention.qkv(x_TD), HEADS)), attention(x_TD, layout, window)
    torch.testing.assert_close(jagged_TD, padded_TD, rtol=1e-4, atol=1e-5)
    weight_TD, wanted = torch.randn_like(x_TD), [x_TD, *attention.parameters()]
    jagged, padded = (torch.autograd.grad((out * weight_TD).sum(), wanted) for out in (jagged_TD, padded_TD))
    torch.testing.assert_close(jagged, padded, rtol=1e-4, atol=1e-4)
    sequence_T = torch.repeat_interleave(torch.tensor(LENGTHS))
    near_TT = (sequence_T[:, None] == sequence_T) & (time_T[:, None] - time_T <= 20)
    needed_nn = F.max_pool2d(near_TT.tril().float()[None], 16)[0] > 0
    worked_nn = window.blocks.to_dense()[0, 0].bool()
    assert needed_nn.shape == worked_nn.shape
    assert bool((worked_nn | ~needed_nn).all())
    blocks = window.blocks
    assert blocks.q_num_blocks is not None
    assert blocks.q_indices is not None
    for column, (count, rows) in enumerate(zip(blocks.q_num_blocks[0, 0], blocks.q_indices[0, 0], strict=True)):
        assert set(rows[: int(count)].tolist()) == set(worked_nn[:, column].nonzero().flatten().tolist())
    assert not bool(worked_nn.triu(1).any())
    assert not bool(worked_nn[-1, 0])


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_groups_hold_every_piece_of_every_token_once(parts: int) -> None:
    layout = Layout(torch.tensor(LENGTHS))
    assert sum(b for b, _ in layout.groups) == len(LENGTHS)
    x_TX = torch.randn(sum(LENGTHS), 3 * parts)
    x_Rk = layout.take(x_TX, parts)
    rows = [row for group in layout.grouped(x_Rk, parts) for row in group.permute(1, 2, 0, 3).flatten(2)]
    for row, own, length in zip(rows, x_TX.split(LENGTHS), LENGTHS, strict=True):
        assert torch.equal(row[:length], own)
        assert torch.equal(row[length:], own[-1:].expand(len(row) - length, 3 * parts))
    assert torch.equal(layout.give_back(x_Rk, parts), x_TX)
    (gradient,) = torch.autograd.grad(layout.give_back(y_Rk := x_Rk.clone().requires_grad_(), parts), y_Rk, x_TX)
    assert torch.equal(layout.scatter(x_TX, parts), gradient)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_padding_stays_under_ten_per_cent(lengths: list[int]) -> None:
    layout = Layout(torch.tensor(sorted(lengths)))
    places = sum(b * longest for b, longest in layout.groups)
    assert places - sum(lengths) <= 0.1 * places
    assert sum(b for b, _ in layout.groups) == len(lengths)
