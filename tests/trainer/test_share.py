"""Training with a part of the workers that there can be: batches and learning rates against those of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from embeddings.workers import Worker
from ingest.data.reader_config import ReaderConfig
from ingest.errors import InputError
from ingest.settings import build_settings
from tests.small import inputs_of, make_trainer, same, watched, weights

pytestmark = pytest.mark.usefixtures("alone")
RATE, WARM = 1e-2, 8
"""Of the dense part, and steps of the warm-up."""


def trained(data: str, folder: Path, share: float, **changes: Any) -> Mapping[str, Tensor]:
    trainer = make_trainer(data, folder, Worker(share=share), **changes)
    trainer.fit()
    return weights(trainer.step)


@pytest.mark.parametrize(("optimizer", "table_factor"), [("sgd", 0.25), ("adagrad", 1.0), ("rowwise_adagrad", 1.0)])
def test_a_quarter_of_the_workers_train_as_one_with_lower_rates(
    optimizer: str, table_factor: float, prepared: dict[str, str], tmp_path: Path
) -> None:
    """Of the same batches: half the rate of AdamW, four times as many steps to warm up, the tables by their kind."""

    def tables(factor: float) -> dict[str, Any]:
        return {"optimizer": optimizer, "learning_rate": 0.1 * factor}

    data = prepared["data"]
    quarter = trained(
        data, tmp_path / "a", 0.25, learning_rate=RATE, warmup_steps=WARM // 4, decay=0.5, tables=tables(1)
    )
    lower = trained(
        data, tmp_path / "b", 1, learning_rate=RATE / 2, warmup_steps=WARM, decay=0.5, tables=tables(table_factor)
    )
    same(quarter, lower, 1e-6)
    if optimizer == "sgd":  # that other rates give other weights
        whole = trained(
            data, tmp_path / "c", 1, learning_rate=RATE, warmup_steps=WARM // 4, decay=0.5, tables=tables(1)
        )
        with pytest.raises(AssertionError):
            same(quarter, whole, 1e-3)


@pytest.mark.parametrize(
    ("most", "merged", "rate"), [(240, 4, RATE), (500, 4, RATE), (179, 2, RATE / 2**0.5), (60, 1, RATE / 2)]
)
def test_those_that_are_left_take_more_up_to_most_tokens(
    most: int, merged: int, rate: float, prepared: dict[str, str], tmp_path: Path
) -> None:
    """The global batch of four workers with 60 tokens, or what of it the most tokens allow."""
    reader = {"tokens": 60, "most_tokens": most, "shuffle_buffer": 2000}
    with watched() as taken:
        left = trained(prepared["data"], tmp_path / "a", 0.25, learning_rate=RATE, reader=reader)
    trainer = make_trainer(prepared["data"], tmp_path / "b", learning_rate=rate, reader=reader)
    trainer.reader.merged = merged
    with watched() as expected:
        trainer.fit()
    assert list(map(inputs_of, ([batch] for batch in taken))) == list(map(inputs_of, ([batch] for batch in expected)))
    assert np.mean([batch.tokens for batch in taken]) == pytest.approx(50 * merged, rel=0.25)
    same(left, weights(trainer.step), 1e-6)


@pytest.mark.parametrize("most", range(1, 9))
def test_no_more_is_taken_than_by_all_workers(most: int) -> None:
    reader = ReaderConfig(tokens=100, most_tokens=350)
    for workers in range(1, most + 1):
        merged = reader.merged(workers / most)
        assert merged == max(times for times in (1, 2, 3) if times == 1 or times * workers <= most)


def test_most_tokens_are_at_least_the_tokens() -> None:
    with pytest.raises(InputError) as error:
        build_settings(ReaderConfig, {"tokens": 100, "most_tokens": 99}, "train.reader")
    assert str(error.value) == "train.reader: most_tokens: takes at least tokens, 100, got 99"
