"""TransAct's pooling and its windows, by loops over users and places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ingest.data.schema import DataConfig
from tests.small import HOUR, Data, train_config
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.transact import TransActConfig
from trainer.recommender import build

LENGTHS = [1, 3, 3, 9, 20]


def made_inputs() -> tuple[Inputs, Tensor]:
    torch.manual_seed(0)
    x_TD = torch.randn(sum(LENGTHS), 8)
    time_T = torch.cat([torch.randint(0, 3, (n,)).cumsum(0) * HOUR for n in LENGTHS]) + 10**12
    position_T = torch.cat([torch.arange(n) for n in LENGTHS])
    return Inputs({"item": x_TD}, x_TD[:, :0], time_T, position_T, Layout(torch.tensor(LENGTHS))), x_TD


@pytest.mark.parametrize("request_known", [False, True])
def test_a_query_joins_the_newest_rows_and_the_maximum_of_all_that_is_seen(
    request_known: bool, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a window for each sequence, one of them without and one that hides all."""
    network = build(TransActConfig(heads=2, newest=4), train_config(), data.manifest).network.eval()
    inputs, x_TD = made_inputs()
    if request_known:
        inputs = replace(inputs, request_time_T=inputs.time_T + torch.randint(0, 3, inputs.time_T.shape) * HOUR)
        inputs = replace(inputs, request_TD=torch.randn_like(x_TD))
    windows = torch.tensor([0, 2 * HOUR, 10**11, 3 * HOUR, 5 * HOUR])
    monkeypatch.setattr(network, "windows", lambda _: windows)
    ours, hidden = network.encode(x_TD, inputs), 0
    begin = 0
    for length, window in zip(LENGTHS, windows.tolist(), strict=True):
        row = slice(begin, begin + length)
        alone = replace(inputs, layout=Layout(torch.tensor([length])))
        for k in range(length):
            now = int(inputs.now_T[row][k])
            seen = [j for j in range(k + 1) if not now - window < int(inputs.time_T[row][j]) <= now or not window]
            hidden += k + 1 - len(seen)
            rows = network.encoder(x_TD[row], alone.layout)[seen]
            newest = [*rows.flip(0)[:4], *[torch.zeros(8)] * (4 - len(rows))]
            highest = rows.amax(dim=0) if len(rows) else torch.zeros(8)
            expected = network.out(torch.cat([*newest, highest]))
            if inputs.request_TD is not None:  # its own alone, whatever the window hides
                expected = expected + inputs.request_TD[row][k]
            torch.testing.assert_close(ours[begin + k], expected, rtol=1e-4, atol=1e-5)
        begin += length
    assert hidden


def test_what_a_window_hides_changes_nothing(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(TransActConfig(heads=2), train_config(), data.manifest).network.eval()
    inputs, x_TD = made_inputs()
    windows = torch.full((len(LENGTHS),), 4 * HOUR)
    monkeypatch.setattr(network, "windows", lambda _: windows)
    before, count_T = network.encode(x_TD, inputs), network.seen(inputs, windows)
    for token in range(len(x_TD) - 20, len(x_TD)):
        other = x_TD.clone()
        other[token] += torch.randn(8)
        moved = (network.encode(other, inputs) - before).abs().amax(dim=1) > 1e-7
        place = int(inputs.position_T[token])
        assert moved[-20:].tolist() == (count_T[-20:] > place).tolist()
        assert not moved[:-20].any()


def test_windows_are_drawn_for_a_share_of_the_sequences_in_training_alone(data: Data) -> None:
    network = build(TransActConfig(mask="10h", masked_share=0.25), train_config(), data.manifest).network
    inputs = replace(made_inputs()[0], layout=Layout(torch.ones(4000, dtype=torch.int64)))
    drawn = network.train().windows(inputs)
    some = drawn[drawn > 0]
    assert len(some) / len(drawn) == pytest.approx(0.25, abs=0.035)
    assert some.max() <= 10 * HOUR
    assert float(some.double().mean()) == pytest.approx(5 * HOUR, rel=0.08)
    assert not network.eval().windows(inputs).any()
    assert not build(TransActConfig(mask=None), train_config(), data.manifest).network.train().windows(inputs).any()


@pytest.mark.parametrize(
    ("model", "unit", "message"),
    [
        (TransActConfig(), "position", "mask: with this data.time_unit it takes a number of positions such as 20"),
        (TransActConfig(mask=5), "ms", "mask: with this data.time_unit it takes a span of time such as 7d, got 5"),
        (TransActConfig(mask=None, masked_share=0.2), "ms", "masked_share: there is no mask, got 0.2"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(model: TransActConfig, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.check(DataConfig.model_validate({"events": "events", "time_unit": unit}), train_config())
