"""Rows for unknown values are trained, and nothing but inputs of training becomes unknown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evaluation.evaluate import validate
from ingest.data.batch import Batch, Lists
from ingest.features.feature import FIRST_VALUE, UNKNOWN
from tests.small import Data, make_step, weights
from trainer.step import Step
from trainer.unknown import with_unknowns

SHARE = 0.2
ATTRIBUTES = {"genres", "content_type", "release_age"}


def values(feature: Tensor | Lists) -> Tensor:
    return feature.values if isinstance(feature, Lists) else feature


def indices(batch: Batch) -> dict[str, Tensor]:
    """The inputs that are indices of a vocabulary, by table."""
    return {"item": batch.item_T} | {
        name: values(feature) for name, feature in batch.features.items() if not values(feature).is_floating_point()
    }


def test_a_share_of_every_known_input_becomes_unknown(data: Data) -> None:
    """Within five standard deviations over some steps; numbers, times, targets and labels are the very same tensors."""
    batch = data.batch(range(60))
    hits, known = dict.fromkeys(indices(batch), 0), dict.fromkeys(indices(batch), 0)
    for step in range(20):
        masked = with_unknowns(batch, SHARE, ATTRIBUTES, 3, step)
        for name, before in indices(batch).items():
            after = indices(masked)[name]
            changed = before != after
            assert (after[changed] == UNKNOWN).all()
            assert (before[changed] >= FIRST_VALUE).all()
            hits[name] += int(changed.sum())
            known[name] += int((before >= FIRST_VALUE).sum())
        item = batch.item_T != masked.item_T
        assert (masked.features["content_type"][item] == UNKNOWN).all()  # type: ignore[index]
        assert masked.past_T is batch.item_T
        assert {id(value) for value in batch.tensors()} - {id(value) for value in masked.tensors()} == {
            id(value) for name, value in indices(batch).items() if name != "item"
        }
    for name, count in known.items():
        assert hits[name] == pytest.approx(SHARE * count, abs=5 * math.sqrt(SHARE * (1 - SHARE) * count)), name
    inputs = [with_unknowns(batch, SHARE, ATTRIBUTES, *draw).item_T for draw in ((3, 0), (3, 0), (3, 1), (4, 0))]
    assert [torch.equal(inputs[0], other) for other in inputs] == [True, True, False, False]


def test_event_features_and_the_item_are_unknown_independently(data: Data) -> None:
    batch = data.batch(range(60))
    both = chosen = 0
    for step in range(40):
        masked = with_unknowns(batch, SHARE, ATTRIBUTES, 0, step)
        item = masked.item_T != batch.item_T
        action = masked.features["action"] != batch.features["action"]
        both, chosen = both + int((item & action).sum()), chosen + int(action.sum())
    assert both / chosen == pytest.approx(SHARE, abs=5 * math.sqrt(SHARE * (1 - SHARE) / chosen))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_for_unknown_values_move_in_training(data: Data, share: float) -> None:
    """Where the training data have no unknown values; without a share they stay as they were drawn."""
    step = make_step(data.manifest, unknown_share=share, tables={"optimizer": "sgd"})
    before = weights(step)
    for number in range(6):
        batch = data.batch(range(9 * number, 9 * number + 9))
        features = {
            name: value if value.is_floating_point() else value.clamp(min=FIRST_VALUE)
            for name, value in batch.features.items() if isinstance(value, Tensor)
        }  # fmt: skip
        batch = replace(batch, features=batch.features | features)
        step.train(batch, number, step.weights_of(batch).tolist())
    after = weights(step)
    for name in step.recommender.tables.names:
        moved = not torch.equal(after[name][UNKNOWN], before[name][UNKNOWN])
        assert moved == bool(share), name


@pytest.mark.usefixtures("alone")
def test_evaluation_sees_every_input(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions and validation do not depend on the share; the batches that the model gets are the reader's."""
    found = []
    for share in (0.0, 0.9):
        step = make_step(data.manifest, unknown_share=share)
        monkeypatch.setattr(Step, "with_unknowns", lambda *_: pytest.fail("an evaluation has unknown inputs"))
        found.append(step.predict(data.batch(range(20))).query[0])
        found.append(validate(step, data.reader("validation", evaluate=True), step.worker, True).metrics)
    assert torch.equal(found[0], found[2])
    assert found[1] == found[3]
