"""A step asks a GPU for nothing: where one has been prepared, no call of it waits for the device."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios import EVERYTHING
from tests.small import MODEL, Data, make_step, make_trainer
from tests.waits import Waits
from trainer.loop import Trainer
from trainer.models.hstu import HSTUConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.scores import pointers

pytestmark = pytest.mark.usefixtures("alone")
SAMPLED: dict[str, Any] = {"kind": "sampled", "negatives": 16, "sampling": "mixed"}
FULL = {"nonzero in trainer/softmax.py forward": 1}
"""Which targets a slice of the catalogue has."""


@pytest.mark.parametrize(
    ("model", "loss", "left"),
    [
        (MODEL, SAMPLED, {}),
        (SASRecConfig(dropout=0.0), SAMPLED, {}),
        (HSTUConfig(heads=2, dropout=0.0), SAMPLED, {}),
        (MODEL, {"kind": "full"}, FULL),
        (MODEL.model_copy(update={"knows": EVERYTHING}), SAMPLED, {}),
    ],
    ids=["intentrec", "sasrec", "hstu", "full softmax", "knows everything"],
)
def test_a_prepared_step_does_not_wait(
    model: NeuralConfig, loss: dict[str, Any], left: dict[str, int], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointers, "_SumExpOfFew", pointers._SumExp)  # as on a GPU
    step = make_step(data.manifest, None, model, data.items.counts, data.known, loss=loss)
    batch = step.asking(data.batch(range(8)), 0)
    weights = step.weights_of(batch).tolist()
    for number in (0, 1):
        with Waits() as preparing:
            prepared = step.prepare(batch, number)
        with Waits() as training:
            step.train(batch, number, weights, 0, prepared)
    assert preparing.found["_unique2 in embeddings/tables.py lookup_once"] == 1
    assert training.found == left


def test_training_reads_numbers_at_points_alone(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, found = Trainer._train_step, list[Counter[str]]()

    def train_step(self: Trainer, *step: Any) -> None:
        with Waits() as waits:
            original(self, *step)
        found.append(waits.found)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    make_trainer(prepared["data"], tmp_path, epochs=1, log_steps=5, loss=SAMPLED).fit()
    assert len(found) > 10
    for number, waits in enumerate(found, 1):
        assert ("tolist in trainer/totals.py read" in waits) == (number % 5 == 0)
        assert number % 5 == 0 or not waits
