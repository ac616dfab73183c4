"""Jagged attention against each sequence alone, with explicit masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainer.attention
from trainer.attention import CausalAttention, Layout

LENGTHS = [1, 1, 3, 4, 4, 12, 15, 40]
D, HEADS = 8, 2


def alone(attention: CausalAttention, x_LD: Tensor, allowed_LL: Tensor) -> Tensor:
    """One sequence in plain formulas: query i sees key j where `allowed_LL`."""
    q, k, v = attention.qkv(x_LD).split(D, dim=1)
    size = D // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part] @ k[:, part].T / size**0.5).masked_fill(~allowed_LL, -torch.inf)
        heads.append(scores.softmax(dim=1) @ v[:, part])
    return attention.out(torch.cat(heads, dim=1))


@pytest.mark.parametrize("window", [None, 0, 5])
@pytest.mark.parametrize("padding", [0.1, 0.0, 1.0])
@pytest.mark.parametrize("most_products", [256, 12, 0])
def test_a_batch_equals_each_sequence_alone(
    window: int | None, padding: float, most_products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batched products, with the kernel, and with both."""
    monkeypatch.setattr(trainer.attention, "MOST_PRODUCTS", most_products)
    torch.manual_seed(0)
    attention = CausalAttention(D, HEADS).double()
    x_TD = torch.randn(sum(LENGTHS), D, dtype=torch.float64, requires_grad=True)
    time_T = torch.cat([torch.randint(0, 4, (length,)).cumsum(0) for length in LENGTHS])
    layout = Layout(torch.tensor(LENGTHS), padding=padding)
    masks = None if window is None else layout.window_masks(time_T, window)
    ours = attention(x_TD, layout, masks)
    parts = []
    for x_LD, time_L in zip(x_TD.split(LENGTHS), time_T.split(LENGTHS), strict=True):
        index = torch.arange(len(x_LD))
        allowed = index[None] <= index[:, None]
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


def test_groups_hold_every_token_once_and_pad_little() -> None:
    layout = Layout(torch.tensor(LENGTHS))
    assert sum(b for b, _ in layout.groups) == len(LENGTHS)
    x_TD = torch.randn(sum(LENGTHS), 3)
    x_PD = layout.pad(x_TD)
    rows = [row for part in layout.grouped(x_PD) for row in part]
    for row, own, length in zip(rows, x_TD.split(LENGTHS), LENGTHS, strict=True):
        assert torch.equal(row[:length], own)
        assert torch.equal(row[length:], own[-1:].expand(len(row) - length, 3))
    assert torch.equal(layout.unpad(x_PD), x_TD)
    (gradient,) = torch.autograd.grad(layout.unpad(y_PD := x_PD.clone().requires_grad_()), y_PD, x_TD)
    assert torch.equal(layout.spread(x_TD), gradient)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_padding_stays_under_ten_per_cent(lengths: list[int]) -> None:
    layout = Layout(torch.tensor(sorted(lengths)))
    places = sum(b * longest for b, longest in layout.groups)
    assert places - sum(lengths) <= 0.1 * places
    assert sum(b for b, _ in layout.groups) == len(lengths)
