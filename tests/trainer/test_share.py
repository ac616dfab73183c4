"""Training with a part of the workers that there can be: batches and learning rates against those of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import Tensor

from embeddings.workers import Worker
from ingest.data.reader_config import ReaderConfig
from tests.small import make_trainer, same, weights

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
    whole = trained(data, tmp_path / "c", 1, learning_rate=RATE, warmup_steps=WARM // 4, decay=0.5, tables=tables(1))
    same(quarter, lower, 1e-6)
    with pytest.raises(AssertionError):
        same(quarter, whole, 1e-3)


@pytest.mark.parametrize(("most", "tokens", "rate"), [(240, 240, RATE), (500, 240, RATE), (120, 120, RATE / 2**0.5)])
def test_those_that_are_left_take_more_up_to_most_tokens(
    most: int, tokens: int, rate: float, prepared: dict[str, str], tmp_path: Path
) -> None:
    """The global batch of four workers with 60 tokens, or what of it the most tokens allow."""
    reader = {"tokens": 60, "max_length": 20, "shuffle_buffer": 1000}
    left = trained(prepared["data"], tmp_path / "a", 0.25, learning_rate=RATE, reader=reader | {"most_tokens": most})
    alone = trained(prepared["data"], tmp_path / "b", 1, learning_rate=rate, reader=reader | {"tokens": tokens})
    same(left, alone, 1e-6)


@pytest.mark.parametrize("workers", range(1, 8))
def test_all_workers_take_what_the_config_says(workers: int) -> None:
    reader = ReaderConfig(tokens=100, most_tokens=250)
    ours, part = reader.of_share(workers / 7)
    assert ours.tokens == min(round(700 / workers), 250)
    assert part == pytest.approx(min(1.0, workers * ours.tokens / 700), abs=1e-12)
    assert reader.of_share(1.0) == (reader, 1.0)


def test_most_tokens_are_at_least_the_tokens() -> None:
    with pytest.raises(ValidationError, match=r"most_tokens takes at least tokens, 100, got 99|takes at least tokens"):
        ReaderConfig(tokens=100, most_tokens=99)
