"""Models of kind rule: in the order of what they know, on two workers as on one, and only where there is a rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from embeddings.workers import Worker
from evaluation.baselines.base import Prepared
from evaluation.baselines.rule import RuleConfig
from evaluation.metrics import RankMetrics
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.sources.simulate import SimulateConfig
from tests.evaluation.scenarios import BOUNDS, bounds
from tests.scenarios import TwoWorkers
from tests.small import Data, make_simulated, one_process
from trainer.models.registry import ModelConfig
from trainer.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def simulated(prepared: dict[str, str]) -> Data:
    return Data(prepared["simulated"])


@pytest.fixture(scope="module")
def found(simulated: Data) -> Iterator[dict[str, np.ndarray]]:
    with one_process():
        yield bounds(simulated, Path(), Worker())


def opened(data: Data) -> Prepared:
    """A simulated data set, with its log beside it."""
    log = str(Path(data.url).parent / "log")
    return Prepared(data.url, data.manifest, data.items, Worker(), log=log)


def test_who_knows_more_is_better(found: dict[str, np.ndarray]) -> None:
    values = {name: RankMetrics(counts).compute()["MRR"] for name, counts in found.items()}
    assert values["intent"] > values["tastes"] + 0.05
    assert values["tastes"] > values["log"] + 0.005
    assert values["log"] > values["popularity"] + 0.3


def test_two_workers_rank_as_one(found: dict[str, np.ndarray], two_workers: TwoWorkers) -> None:
    for part in two_workers.result("bounds"):
        for name, counts in found.items():
            np.testing.assert_array_equal(part[name], counts)


def test_of_every_target_the_probabilities_sum_to_one(simulated: Data) -> None:
    """Over all items, whether training knows them or not; and the target's is never 0."""
    (batch,) = (batch for batch, _ in simulated.reader("test", evaluate=True, tokens=10**9).epoch(0))
    for knows in BOUNDS:
        scorer = RuleConfig(knows=knows).scorer(opened(simulated))
        scores = scorer.scores(scorer.predict(batch).query)
        assert scores.shape == (len(batch.target_Q), simulated.manifest.catalogue)
        np.testing.assert_allclose(scores[:, 2:].sum(dim=1), 1, rtol=1e-9)
        assert (scores[:, :2] == 0).all()
        assert scores[range(len(scores)), batch.target_Q].min() > 0


def test_a_batch_without_targets_is_asked_as_any_other(simulated: Data) -> None:
    """As a worker does that is through before the others."""
    reader = simulated.reader("test", evaluate=True)
    whole, _ = next(iter(reader.epoch(0)))
    for knows in BOUNDS:
        scorer = RuleConfig(knows=knows).scorer(opened(simulated))
        parts = [scorer.predict(batch).query for batch in (whole, reader.builder.empty())]
        assert [(part.dtype, part.shape[1:]) for part in parts[0]] == [
            (part.dtype, part.shape[1:]) for part in parts[1]
        ]
        assert scorer.scores(parts[1]).shape == (0, simulated.manifest.catalogue)


def test_the_score_is_the_chance_to_come_true(simulated: Data) -> None:
    """What the filter gives to the items that came is, on the mean, what it says of itself."""
    (batch,) = (batch for batch, _ in simulated.reader("test", evaluate=True, tokens=10**9).epoch(0))
    scorer = RuleConfig().scorer(opened(simulated))
    scores = scorer.scores(scorer.predict(batch).query)
    expected, came = (scores**2).sum(dim=1), scores[range(len(scores)), batch.target_Q]
    spread = float(((scores**3).sum(dim=1) - expected**2).sum()) ** 0.5
    assert abs(float((came - expected).sum())) < 4 * spread
    assert spread < 0.1 * float(expected.sum())


def test_only_a_made_log_has_a_rule(data: Data, simulated: Data, tmp_path: Path) -> None:
    def refused(of: Data, log: str | None) -> str:
        batch, _ = next(iter(of.reader("test", evaluate=True).epoch(0)))
        prepared = Prepared(of.url, of.manifest, of.items, Worker(), log=log)
        with pytest.raises(InputError) as error:
            RuleConfig().scorer(prepared).predict(batch)
        return str(error.value)

    assert refused(data, None) == (
        f"{data.url}: was not made by `intentrec simulate`, whose rule a model of kind rule knows"
    )
    assert refused(simulated, str(tmp_path)).startswith(f"{tmp_path}: there is no truth/rule.json")
    log = str(Path(simulated.url).parent / "log")
    assert "other items than" in refused(data, log)
    make_simulated(tmp_path / "other", seed=5)
    assert f"other events than {tmp_path}/other/log" in refused(simulated, str(tmp_path / "other" / "log"))
    SimulateConfig(users=2, items=150, processes=1).make(str(tmp_path / "fewer" / "log"))
    assert "other users than" in refused(simulated, str(tmp_path / "fewer" / "log"))


def test_what_does_not_fit_is_refused_at_the_start() -> None:
    with pytest.raises(ValidationError, match="knows"):
        ModelConfig.model_validate({"kind": "rule", "knows": "all"})
    own = DataConfig.model_validate({"events": "log.parquet"})
    with pytest.raises(ValueError, match=r"^log: kind rule takes the folder of a log that `intentrec simulate`"):
        RuleConfig().check(own, TrainConfig())
    RuleConfig(log="log").check(own, TrainConfig())
    assert RuleConfig(log="log").log == str(Path("log").absolute())
    with pytest.raises(ValueError, match="needs real times"):
        RuleConfig(log="log").check(own.model_copy(update={"time_unit": "position"}), TrainConfig())
