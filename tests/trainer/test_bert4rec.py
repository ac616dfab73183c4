"""BERT4Rec: what it hides, that it sees nothing of it, and its encoder one user at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ingest.data.batch import Batch, Lists
from ingest.data.schema import DataConfig
from tests.small import Data, Stopped, make_step, make_trainer, same, train_config, watched, weights
from trainer.hidden import with_hidden
from trainer.models import bert4rec
from trainer.models.bert4rec import BERT4RecConfig
from trainer.recommender import build
from trainer.step import Step

EVERYTHING = BERT4RecConfig(heads=2, dropout=0.0, features=True, times=True, intents=None)
KINDS = {"items": BERT4RecConfig(heads=2, dropout=0.0), "everything": EVERYTHING}


def lists(value: Tensor | Lists) -> list[list[int]]:
    if isinstance(value, Lists):
        return [part.tolist() for part in value.values.split(value.lengths.tolist())]
    return [[index] for index in value.tolist()]


def targets(batch: Batch) -> dict[int, list]:
    """All of each target by the token that it is predicted from."""
    columns = [
        batch.target_Q.tolist(),
        batch.weight_Q.tolist(),
        batch.row_Q.tolist(),
        *map(lists, batch.labels.values()),
    ]
    return dict(zip(batch.target_position_Q.tolist(), map(list, zip(*columns, strict=True)), strict=True))


def test_a_share_of_the_targets_and_every_sequences_last_are_asked_for(data: Data) -> None:
    batch = data.batch(range(60))
    everything, last = targets(batch), set((batch.lengths_B.cumsum(0) - 1).tolist())
    found = [targets(with_hidden(batch, 0.3, 0, epoch)) for epoch in range(30)]
    for kept in found:
        assert kept.keys() >= last
        assert all(everything[token] == value for token, value in kept.items())
    assert len({tuple(kept) for kept in found}) == 30
    others = len(everything) - len(last)
    share = sum(len(kept) - len(last) for kept in found) / (30 * others)
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / (30 * others)))
    assert targets(with_hidden(batch, 0.0, 0, 0)).keys() == last


def test_what_is_hidden_does_not_depend_on_the_batch(data: Data) -> None:
    whole = with_hidden(data.batch(range(20)), 0.3, 5, 2)
    for row in range(20):
        alone = with_hidden(data.batch([row]), 0.3, 5, 2)
        assert torch.equal(whole.target_Q[whole.row_Q == row], alone.target_Q)
    empty = with_hidden(data.builder.empty(), 0.3, 5, 2)
    assert not len(empty.target_Q)


def trained_queries(step: Step, batch: Batch) -> Tensor:
    """Queries and intents as a training step has them."""
    step.parallel.train()
    with torch.no_grad():
        asked = step.recommender.ask(batch, *step.candidates.of(batch, batch.target_Q[:0], None))
        prediction = step.recommender(asked)
    return torch.cat([prediction.query[0], *prediction.intents.values()], dim=1)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
def test_training_sees_nothing_of_what_is_asked_for(model: BERT4RecConfig, data: Data) -> None:
    """Items and metadata of hidden interactions change nothing; those of the others change what is asked for beside."""
    step = make_step(data.manifest, model=model)
    batch = with_hidden(data.batch(range(12)), 0.4, 0, 0)
    before = trained_queries(step, batch)
    first_T = batch.position_T == 0
    hidden_T = (
        torch.zeros(batch.tokens + 1, dtype=torch.bool).index_fill_(0, batch.target_position_Q + 1, True)[:-1]
        & ~first_T
    )
    assert hidden_T.sum() > 10
    sequence_T = torch.arange(len(batch.lengths_B)).repeat_interleave(batch.lengths_B)

    def other(changed_T: Tensor) -> Batch:
        features = {}
        for name, value in batch.features.items():
            if isinstance(value, Lists):
                changed_N = changed_T.repeat_interleave(value.lengths)
                features[name] = replace(value, values=torch.where(changed_N, 2 + (value.values - 1) % 3, value.values))
            else:
                other_T = value + 1.5 if value.is_floating_point() else 2 + (value - 1).clamp(min=0) % 2
                features[name] = torch.where(changed_T, other_T, value)
        item_T = torch.where(changed_T, 2 + (batch.item_T + 3) % (data.manifest.items - 2), batch.item_T)
        return replace(batch, item_T=item_T, features=features)

    assert torch.equal(trained_queries(step, other(hidden_T)), before)
    for token in (~hidden_T).nonzero()[:, 0].tolist():
        only_T = torch.zeros_like(hidden_T).index_fill_(0, torch.tensor(token), True)
        moved_Q = (trained_queries(step, other(only_T)) - before).abs().amax(dim=1) > 1e-7
        assert torch.equal(moved_Q, sequence_T[batch.target_position_Q] == sequence_T[token])


def full_attention(attention: torch.nn.Module, x_LD: Tensor) -> Tensor:
    """Every place sees every place, two heads of four."""
    q, k, v = attention.qkv(x_LD).split(8, dim=1)
    heads = [(q[:, p] @ k[:, p].T / 2).softmax(dim=1) @ v[:, p] for p in (slice(0, 4), slice(4, 8))]
    return attention.out(torch.cat(heads, dim=1))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("training", "places"), [(False, 10**6), (False, 30), (True, 30)])
def test_queries_equal_those_of_each_user_alone(
    training: bool, places: int, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training one sequence a user with all that is asked hidden; else one a target, cut before it, some at a
    time."""
    monkeypatch.setattr(bert4rec, "PLACES_AT_ONCE", places)
    step = make_step(data.manifest, model=KINDS["items"])
    network, items = step.recommender.network, weights(step)["item"]
    batch = with_hidden(data.batch(range(9)), 0.4, 0, 0)
    ours = trained_queries(step, batch) if training else step.predict(batch).query[0]

    def encoded(vectors_LD: Tensor) -> Tensor:
        x = vectors_LD + network.place.weight[: len(vectors_LD)].flip(0)
        for block in network.encoder.blocks:
            x = x + full_attention(block.attention, block.attention_norm(x))
            x = x + block.feed_forward(x)
        return network.encoder.norm(x)

    ends = batch.lengths_B.cumsum(0).tolist()
    with torch.no_grad():
        for q, token in enumerate(batch.target_position_Q.tolist()):
            end = next(end for end in ends if end > token)
            begin = token - int(batch.position_T[token])
            last = end if training else token + 1
            asked = [t for t in batch.target_position_Q.tolist() if begin <= t < end] if training else [token]
            vectors = torch.cat([items[batch.item_T[begin:last]] * math.sqrt(8), network.hidden[None]])
            vectors[[t + 1 - begin for t in asked]] = network.hidden.data
            torch.testing.assert_close(ours[q], encoded(vectors)[token + 1 - begin], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("alone")
def test_each_epoch_asks_for_others_and_the_loss_falls(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    original = Step.asking

    def asking(self: Step, batch: Batch, epoch: int) -> Batch:
        kept = original(self, batch, epoch)
        asked.append((epoch, len(kept.target_Q)))
        return kept

    monkeypatch.setattr(Step, "asking", asking)
    trainer = make_trainer(data.url, tmp_path, model=KINDS["items"], epochs=3)
    progress = trainer.fit()
    epochs = [sum(count for number, count in asked if number == epoch) for epoch in range(3)]
    every = sum(len(batch.target_Q) for batch, _ in trainer.reader.epoch(0))
    assert all(count < every / 2 for count in epochs)
    assert len(set(epochs)) > 1
    losses = [loss for _, loss in progress.train_curve]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


@pytest.mark.usefixtures("alone")
def test_resumed_is_uninterrupted_bit_for_bit(data: Data, tmp_path: Path) -> None:
    """Killed in the middle of its second epoch, it hides the same interactions for the rest of it."""
    exact: dict[str, Any] = {"model": BERT4RecConfig(heads=2, dropout=0.3), "epochs": 2, "checkpoint_steps": 3}
    undisturbed = make_trainer(data.url, tmp_path / "undisturbed", **exact)
    steps = undisturbed.fit().step
    with watched(stop_after=steps // 2 + 5), pytest.raises(Stopped):
        make_trainer(data.url, tmp_path / "resumed", **exact).fit()
    resumed = make_trainer(data.url, tmp_path / "resumed", **exact)
    found = [resumed.fit().validation_curve, undisturbed.progress.validation_curve]
    assert list(map(tuple, found[0])) == list(map(tuple, found[1]))
    same(weights(resumed.step), weights(undisturbed.step))


def test_it_has_a_place_more_than_interactions(data: Data) -> None:
    network = build(KINDS["items"], train_config(reader={"max_length": 17}), data.manifest).network
    assert network.place.weight.shape == (18, 8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BERT4RecConfig(knows=["history"]), "knows: history needs a model with an answer at every place"),
        (
            BERT4RecConfig(features=True),
            "features: kind: bert4rec can not read 'mode', which is made of the items before",
        ),
    ],
)
def test_what_can_not_be_had_is_refused(model: BERT4RecConfig, message: str) -> None:
    data = DataConfig.model_validate(
        {"events": "events", "features": [{"name": "mode", "kind": "repeat", "intent": True}]}
    )
    with pytest.raises(ValueError, match=message):
        model.check(data, train_config())
    BERT4RecConfig(intents=None).check(data, train_config())
