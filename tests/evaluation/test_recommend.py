"""Recommendations against sorting all scores in one place, on one and two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.workers import Worker
from evaluation.evaluation_config import RecommendConfig
from evaluation.ranking import NeuralScorer
from evaluation.recommend import SPLITS, recommend
from ingest.data.builder import BatchBuilder
from ingest.data.reader import Reader
from ingest.features.feature import UNKNOWN
from tests.evaluation.scenarios import recommended
from tests.scenarios import TwoWorkers
from tests.small import MODEL, Data, make_step, take_rows, train_config, weights

pytestmark = pytest.mark.usefixtures("alone")


def rows_of(folder: Path) -> dict[Any, dict[str, Any]]:
    """The rows of every file in the folder, by user; no user comes twice."""
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    by_user = {row["user"]: row for row in rows}
    assert len(by_user) == len(rows)
    return by_user


@pytest.fixture
def found(data: Data, alone: None, tmp_path: Path) -> dict[Any, dict[str, Any]]:
    return rows_of(recommended(data, tmp_path, Worker()))


def test_every_user_of_the_log_is_there_even_with_one_event(data: Data, found: dict[Any, dict[str, Any]]) -> None:
    log = pq.read_table(Path(data.url).parent / "events.parquet")
    assert set(found) == set(log["user_id"].to_pylist())


def test_items_are_the_best_unseen_of_the_catalogue(data: Data, found: dict[Any, dict[str, Any]]) -> None:
    """The model's answer to each user's whole history, one user at a time, ranked by sorting."""
    step = make_step(data.manifest)
    table = weights(step)["item"]
    ids = pq.read_table(Path(data.url, "vocab", "item.parquet"))["value"].to_pylist()
    builder = BatchBuilder(data.manifest, data.items, 20, windows=False, with_seen=True, after_last=True)
    log = pq.read_table(Path(data.url).parent / "events.parquet").to_pylist()
    for split in ("test", "rest"):
        (rows,) = data.reader(split, evaluate=True, shuffle_buffer=10**9).rows()
        for number, user in enumerate(rows.users):
            prediction = step.predict(builder.build(take_rows(rows, np.array([number]))))
            scores = (table @ prediction.query[0][0]).tolist()
            seen = {row["item_id"] for row in log if row["user_id"] == user}
            allowed = [index for index in range(2, data.manifest.items) if ids[index] not in seen]
            best = sorted(allowed, key=lambda index: -scores[index])[:7]
            row = found[user]
            assert row["items"] == [ids[index] for index in best]
            assert row["scores"] == pytest.approx([scores[index] for index in best], rel=1e-4, abs=1e-6)
            assert prediction.attention_QM is not None
            assert list(row["attention"].values()) == pytest.approx(prediction.attention_QM[0].tolist(), rel=1e-4)
            for name, logits in prediction.intents.items():
                labels = pq.read_table(Path(data.url, "vocab", f"{name}.parquet"))["value"].to_pylist()
                chances = logits[0].softmax(dim=0).tolist()
                order = sorted(range(len(chances)), key=lambda index, chances=chances: -chances[index])[:2]
                assert [pair["label"] for pair in row["intents"][name]] == [labels[index + 2] for index in order]
                assert [pair["probability"] for pair in row["intents"][name]] == pytest.approx(
                    [chances[index] for index in order], rel=1e-4
                )


def test_two_workers_write_what_one_does(found: dict[Any, dict[str, Any]], two_workers: TwoWorkers) -> None:
    folder = two_workers.result("recommended")[0]
    assert len(list(folder.glob("*.parquet"))) == 2
    both = rows_of(folder)
    assert set(both) == set(found)
    for user, row in both.items():
        assert row["items"] == found[user]["items"]
        assert row["scores"] == pytest.approx(found[user]["scores"], rel=1e-4, abs=1e-6)


def test_what_is_asked_for_depends_on_the_moment(data: Data, alone: None, tmp_path: Path) -> None:
    """A model that knows the request and what is recent, asked at two moments, answers as with batches of them."""
    model = MODEL.model_copy(update={"knows": ["request", "recent"]})
    answers = []
    for number, moment in enumerate(("2020-09-14T00:00:00", "2020-09-18T12:00:00+02:00")):
        step = make_step(data.manifest, model=model, known=data.known)
        torch.manual_seed(5)
        for name, parameter in step.dense.items():
            if "scores." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        settings = RecommendConfig.model_validate({"top": 5, "moment": moment})
        milliseconds = settings.milliseconds
        assert milliseconds == [1_600_041_600_000, 1_600_423_200_000][number]
        config = train_config().reader
        readers = [Reader(data.url, data.manifest, data.items, split, config, after_last=True, moment=milliseconds)
                   for split in SPLITS]  # fmt: skip
        scorer = NeuralScorer(step)
        folder = tmp_path / str(number)
        recommend(scorer, readers, Worker(), settings, False, str(folder))
        answers.append(rows_of(folder))
        builder = BatchBuilder(
            data.manifest, data.items, 20, windows=False, with_seen=True, after_last=True, moment=milliseconds
        )
        (rows,) = data.reader("test", evaluate=True, shuffle_buffer=10**9).rows()
        ids = pq.read_table(Path(data.url, "vocab", "item.parquet"))["value"].to_pylist()
        for place in range(0, len(rows), 7):
            batch = builder.build(take_rows(rows, np.array([place])))
            assert batch.request["device"][batch.target_position_Q].tolist() == [UNKNOWN]
            prediction = step.predict(batch)
            scores = scorer.scores(prediction.query)[0]
            scores[:2] = -torch.inf
            best = scores.topk(5)
            assert answers[-1][rows.users[place]]["scores"] == pytest.approx(best.values.tolist(), rel=1e-4, abs=1e-5)
            items = scorer.row_to_item(scorer.slice.rows_of(best.indices)).tolist()
            assert answers[-1][rows.users[place]]["items"] == [ids[index] for index in items]
    assert sum(answers[0][user]["items"] != answers[1][user]["items"] for user in answers[0]) > len(answers[0]) / 2
