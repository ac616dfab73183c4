"""Settings of baselines that are chosen on the validation split, against plain counting there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from embeddings.workers import Worker
from evaluation.baselines.base import BaselineConfig
from evaluation.baselines.recent import RecentConfig
from evaluation.baselines.returns import ReturnsConfig
from evaluation.baselines.trending import TrendingConfig
from evaluation.results import Evaluated
from ingest.data.manifest import save_manifest
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from tests.evaluation.references import REFERENCES, Log, rank
from tests.evaluation.scenarios import SEVERAL, chosen
from tests.scenarios import TwoWorkers
from tests.small import FEATURES, Data, one_process, train_config
from trainer.models.registry import ModelConfig
from trainer.train_config import TrainConfig

COMBINATIONS: dict[str, list[dict[str, Any]]] = {
    "own-items": [
        {"order": "recency", "half_life": 2.0},
        {"order": "frequency", "half_life": 2.0},
        {"order": "decay", "half_life": 2.0},
        {"order": "decay", "half_life": 30.0},
    ],
    "trending": [{"span": span, "live": live} for span in ("1h", "2d") for live in (False, True)],
}


@pytest.fixture(scope="module")
def in_time(prepared: dict[str, str]) -> Data:
    return Data(prepared["in time"])


@pytest.fixture(scope="module")
def found(in_time: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    with one_process():
        yield chosen(in_time, tmp_path_factory.mktemp("chosen"), Worker())


def ranks_of(log: Log, name: str, settings: dict[str, Any]) -> list[int]:
    keys = REFERENCES[SEVERAL[name]["kind"]](log, **settings)
    return [rank(keys(target), target.item) for target in log.targets.values()]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_best_on_validation_is_taken_for_the_test(in_time: Data, found: Evaluated, name: str) -> None:
    choice = found.models[name].chosen
    assert choice is not None
    assert choice.metric == "HR@5"
    assert [tried.settings for tried in choice.tried] == COMBINATIONS[name]
    validation = Log(in_time, "validation")
    assert len(validation.targets) > 30
    for tried in choice.tried:
        ranks = ranks_of(validation, name, tried.settings)
        assert tried.value == pytest.approx(sum(0 < r <= 5 for r in ranks) / len(ranks), abs=1e-12)
    best = max(choice.tried, key=lambda tried: tried.value)
    assert choice.settings == best.settings
    assert len({tried.value for tried in choice.tried}) > 1
    ranks = ranks_of(Log(in_time), name, best.settings)
    assert found.models[name].metrics["MRR"] == pytest.approx(math.fsum(1 / r for r in ranks if r) / len(ranks))


def test_two_workers_choose_as_one(found: Evaluated, two_workers: TwoWorkers) -> None:
    for part in two_workers.result("chosen"):
        for name, model in found.models.items():
            assert part.models[name].chosen == model.chosen
            assert part.models[name].metrics == model.metrics
    assert found.models["markov"].chosen is None
    assert found.protocol.metric == "NDCG@10"


def test_without_validation_targets_there_is_nothing_to_choose_by(
    in_time: Data, tmp_path: Path, found: Evaluated
) -> None:
    shutil.copytree(in_time.url, tmp_path / "data")
    shards = in_time.manifest.shards | {"validation": []}
    save_manifest(in_time.manifest.model_copy(update={"shards": shards}), str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"models\.own-items: takes one value for order, half_life: there is no valid"):
        chosen(Data(str(tmp_path / "data")), tmp_path, Worker())
    single = {"own-items": {"kind": "recent", "order": "decay"}}
    assert chosen(Data(str(tmp_path / "data")), tmp_path, Worker(), single).models["own-items"].chosen is None


def test_a_config_gives_its_candidates_and_survives_a_round_trip() -> None:
    config = ModelConfig.model_validate({"kind": "item_knn", "neighbours": [50, 200], "counted": [True, False]})
    assert isinstance(config, BaselineConfig)
    again = ModelConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert [(c.neighbours, c.counted) for c in again.candidates()] == [  # type: ignore[attr-defined]
        (50, True), (50, False), (200, True), (200, False)
    ]  # fmt: skip
    assert not any(candidate.several for candidate in config.candidates())
    assert RecentConfig(half_life=[1.0, 2.0]).candidates() == [RecentConfig(half_life=1.0)]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"kind": "recent", "order": "newest"}, "order"),
        ({"kind": "recent", "half_life": [2.0, 0.0]}, "half_life"),
        ({"kind": "recent", "half_life": []}, "half_life"),
        ({"kind": "trending", "span": "7m"}, "takes a multiple of 5m, such as 15m or 1d"),
        ({"kind": "trending", "span": ["1h", "soon"]}, "span"),
        ({"kind": "item_knn", "decay": 1.5}, "decay"),
    ],
)
def test_an_impossible_setting_is_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate(section)


def test_a_log_without_times_has_no_trend() -> None:
    config = ModelConfig.model_validate({"kind": "trending"})
    config.check(DataConfig(events="log"), TrainConfig())
    with pytest.raises(ValueError, match="kind: trending needs real times, not time_unit position"):
        config.check(DataConfig(events="log", time_unit="position"), TrainConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TrendingConfig(by=[None, "action"]),
            "by: takes a feature with `at_request: true`, got 'action'; allowed: device",
        ),
        (
            ReturnsConfig(by="genres"),
            "by: takes a feature with one value, got 'genres'; allowed: action, device, content",
        ),
    ],
)
def test_a_feature_that_a_baseline_can_not_tell_apart_is_refused(config: BaselineConfig, message: str) -> None:
    data = DataConfig.model_validate({"events": "events", "items": "items", "features": FEATURES})
    with pytest.raises(ValueError, match=message):
        config.check(data, train_config())
    config.model_copy(update={"by": [None, "device"]}).check(data, train_config())
