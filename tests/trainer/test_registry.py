"""Kinds of models: known by name, imported when asked for, and without torch; one of the test's own among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from ingest.data.schema import DataConfig
from tests.small import Data, make_trainer, weights
from trainer.models.registry import MODELS, NeuralConfig, register
from trainer.train_config import TrainConfig


def test_reading_the_built_in_configs_imports_no_torch() -> None:
    """In a fresh process; each kind's file is imported when it is asked for."""
    code = """
import sys
from trainer.models.registry import MODELS
assert not [name for name in sys.modules if name.startswith("trainer.models.") and not name.endswith("registry")]
for kind in ("intentrec", "deep", "sasrec", "transformer", "bert4rec", "transact", "hstu", "gru", "lstm"):
    assert MODELS[kind]().kind == kind
    assert f"trainer.models.{kind}" in sys.modules
assert not {"torch", "torchrec", "ray"} & set(sys.modules), "heavy"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_kind_is_told_with_those_that_there_are() -> None:
    with pytest.raises(
        ValueError,
        match="takes a kind of model: intentrec, deep, sasrec, transformer, bert4rec, transact, hstu, gru, lstm",
    ):
        MODELS["gru4rec"]


def test_a_kind_that_is_taken_is_not_registered_again() -> None:
    sasrec = MODELS["sasrec"]

    class Other(NeuralConfig):
        kind: Literal["sasrec"] = "sasrec"

    with pytest.raises(ValueError, match="kind of model 'sasrec' is registered twice"):
        register(Other)
    assert MODELS["sasrec"] is sasrec


@pytest.mark.usefixtures("alone")
def test_a_model_of_one_own_file_trains_and_ranks(data: Data, tmp_path: Path) -> None:
    """Its loss falls, and its validation is that of plain means and a sorted catalogue."""
    import tests.trainer.mean_model  # noqa: F401

    model = MODELS["mean"]()
    assert isinstance(model, NeuralConfig)
    trainer = make_trainer(data.url, tmp_path, model=model, epochs=1)
    progress = trainer.fit()
    assert progress.finished
    losses = [loss for _, loss in progress.train_curve]
    assert sum(losses[-5:]) < sum(losses[:5])
    table, linear = weights(trainer.step)["item"], trainer.step.recommender.network.linear
    reciprocal = []
    for batch, _ in data.reader("validation", evaluate=True).epoch(0):
        begins = batch.lengths_B.cumsum(0) - batch.lengths_B
        for at, target in zip(batch.target_position_Q.tolist(), batch.target_Q.tolist(), strict=True):
            begin = max(value for value in begins.tolist() if value <= at)
            scores = table @ linear(table[batch.item_T[begin : at + 1]].mean(dim=0))
            reciprocal.append(1 / int((scores[2:] >= scores[target]).sum()) if target >= 2 else 0.0)
    assert progress.best == pytest.approx(sum(reciprocal) / len(reciprocal), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"cold_share": 0.9, "knows": ["history"]},
            "cold_share: acts on a model that knows attributes or recent or tr",
        ),
        (
            {"moments": {"live": False}},
            "moments: acts on a model that knows recent or transitions; this one knows none",
        ),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(model: dict[str, Any], told: str) -> None:
    config = MODELS["sasrec"].model_validate(model)
    with pytest.raises(ValueError, match=told):
        config.check(DataConfig(events="log.parquet"), TrainConfig())
