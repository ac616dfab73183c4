"""Every baseline can be asked what comes after a whole history, as a request does, and is timed in it."""

from __future__ import annotations

import pytest

from embeddings.workers import Worker
from evaluation.baselines.base import BaselineConfig, Prepared
from evaluation.timing import timed
from tests.evaluation.cases import CASES
from tests.small import Data
from trainer.models.registry import ModelConfig


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", CASES)
def test_a_request_is_timed(name: str, data: Data) -> None:
    config = ModelConfig.model_validate(CASES[name])
    assert isinstance(config, BaselineConfig)
    scorer = config.scorer(Prepared(data.url, data.manifest, data.items, Worker()))
    alone, together = (data.reader("test", after_last=True, tokens=tokens) for tokens in (1, 200))
    assert {len(batch.target_Q) for batch, _ in alone.epoch(0)} == {1}
    found = timed(scorer, alone, together, Worker(), filter_seen=False)
    assert found is not None
    assert 0 < found.request < 10
    assert found.users_per_second > 0
