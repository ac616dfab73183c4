"""What tests of the evaluation run on two real processes, as tests/scenarios.py says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import evaluation.parquet
import evaluation.ranking
from embeddings.workers import Worker, gather_objects
from evaluation.baselines.base import BaselineConfig, BaselineScorer, Prepared
from evaluation.baselines.markov import MarkovConfig
from evaluation.baselines.popularity import PopularityConfig
from evaluation.baselines.rule import RuleConfig
from evaluation.evaluate import evaluate, validate
from evaluation.evaluation_config import EvaluateConfig, RecommendConfig
from evaluation.evaluator import EvaluationRun, evaluate_models
from evaluation.model import Model
from evaluation.ranking import CatalogueRanker, NeuralScorer
from evaluation.recommend import recommend
from evaluation.results import Evaluated
from evaluation.slices import CatalogueSlice
from ingest.data.batch import Lists
from tests.evaluation.cases import CASES
from tests.small import MODEL, Data, make_step, train_config, weights
from trainer.checkpoint import Checkpoints
from trainer.models.registry import ModelConfig
from trainer.progress import Progress

BOUNDS: tuple[Literal["intent", "tastes", "log"], ...] = ("intent", "tastes", "log")


class MatrixScorer(BaselineScorer):
    """Scores that are given: a query is a row of the matrix."""

    def __init__(self, scores: np.ndarray, worker: Worker, known: int = 0) -> None:
        own = CatalogueSlice(known or scores.shape[1], scores.shape[1], worker)
        self.scores_av = torch.from_numpy(scores[:, own.rows.numpy()])

    def scores(self, query: Any) -> Any:
        return self.scores_av[query[0]]


def ranking_case() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Scores with many ties, targets (some unknown, some seen) and seen items of 23 queries over 31 items."""
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, (23, 31)).astype(np.float32)
    targets = rng.integers(0, 31, 23)
    targets[:3] = [0, 1, 2]
    seen = [rng.integers(0, 31, rng.integers(0, 9)).tolist() for _ in range(23)]
    seen[5].append(int(targets[5]))
    return scores, targets, seen


def ranking(data: Data, folder: Path, worker: Worker, share: float, filtered: bool, k: int = 5, known: int = 31) -> Any:
    """Ranks and top K of this worker's queries: the first `share` of them for rank 0, the rest for rank 1."""
    scores, targets, seen = ranking_case()
    cut = round(share * len(targets)) if worker.workers == 2 else len(targets)
    own = range(cut) if worker.first else range(cut, len(targets))
    jagged = Lists(
        torch.tensor([item for q in own for item in seen[q]], dtype=torch.int64),
        torch.tensor([len(seen[q]) for q in own], dtype=torch.int64),
    )
    ranker = CatalogueRanker(MatrixScorer(scores, worker, known), known, scores.shape[1], worker, filtered)
    query = (torch.tensor(list(own), dtype=torch.int64),)
    ranking = evaluation.ranking
    before = ranking.SCORES_AT_ONCE, ranking.QUERIES_AT_ONCE
    ranking.SCORES_AT_ONCE, ranking.QUERIES_AT_ONCE = 70, 1
    try:
        ranks = ranker.ranks(query, torch.from_numpy(targets[own.start : own.stop]), jagged)
        item_QK, score_QK = ranker.top(query, jagged, k)
    finally:
        ranking.SCORES_AT_ONCE, ranking.QUERIES_AT_ONCE = before
    return ranks.numpy(), item_QK.numpy(), score_QK.numpy()


def baselines(data: Data, folder: Path, worker: Worker) -> list[np.ndarray]:
    """This worker's slice of the scores of Popularity and Markov after each item."""
    last = torch.arange(data.manifest.catalogue)
    prepared = Prepared(data.url, data.manifest, data.items, worker)
    scorers = [kind().scorer(prepared) for kind in (PopularityConfig, MarkovConfig)]
    return [scorer.scores((last,)).numpy() for scorer in scorers]


def kinds(data: Data, folder: Path, worker: Worker) -> dict[str, tuple[Any, ...]]:
    """Of each of `CASES`: all test targets by user and place, this worker's slice of their scores, and their ranks,
    counted over all workers.
    """
    everything: dict[str, Any] = {"tokens": 10**9, "shuffle_buffer": 10**9, "max_length": 100}
    (whole,) = (batch for batch, _ in data.reader("test", evaluate=True, **everything).epoch(0))
    assert whole.target_place_Q is not None
    targets = [(whole.users[row], place) for row, place in zip(whole.row_Q.tolist(), whole.target_place_Q.tolist())]  # noqa: B905
    prepared = Prepared(data.url, data.manifest, data.items, worker)
    found = {}
    for name, case in CASES.items():
        config = ModelConfig.model_validate(case)
        assert isinstance(config, BaselineConfig)
        scorer = config.scorer(prepared)
        length = 100 if case["kind"] == "returns" else 3  # the one baseline that sees no further than the sequences
        reader = data.reader("test", worker, evaluate=True, tokens=25, max_length=length)
        ranks = evaluate(scorer, reader, worker, False, "").ranks.counts
        found[name] = (targets, scorer.scores(scorer.predict(whole).query).numpy(), ranks)
    return found


def bounds(data: Data, folder: Path, worker: Worker) -> dict[str, np.ndarray]:
    """How many targets of a simulated log have each rank, by what is known of its rule; and by popularity."""
    log = str(Path(data.url).parent / "log")
    prepared = Prepared(data.url, data.manifest, data.items, worker, log=log)
    configs = {"popularity": PopularityConfig()} | {name: RuleConfig(knows=name) for name in BOUNDS}
    found = {}
    for name, config in configs.items():
        reader = data.reader("test", worker, evaluate=True, tokens=3000)
        found[name] = evaluate(config.scorer(prepared), reader, worker, False, "").ranks.counts
    return found


def recommended(data: Data, folder: Path, worker: Worker) -> Path:
    """Recommendations of the model as it begins, in row groups of a few users; the folder that they are in."""
    step = make_step(data.manifest, worker)
    readers = [data.reader(split, worker, after_last=True) for split in ("test", "rest")]
    url = folder / f"recommended-{worker.workers}"
    with small_row_groups():
        users = recommend(NeuralScorer(step), readers, worker, RecommendConfig(top=7, labels=2), True, str(url))
    assert sum(gather_objects(users)) == 62
    return url


@contextmanager
def small_row_groups() -> Iterator[None]:
    """Files are written in row groups of a few users."""
    before, evaluation.parquet.ROW_GROUP = evaluation.parquet.ROW_GROUP, 10
    try:
        yield
    finally:
        evaluation.parquet.ROW_GROUP = before


READERS = {
    "intentrec": {"tokens": 60, "max_length": 20},
    "markov": {"tokens": 25, "max_length": 3, "shuffle_buffer": 100},
    "popularity": {"tokens": 400, "max_length": 9},
}
"""Settings with which targets come in another order for every model."""


def evaluated(data: Data, folder: Path, worker: Worker, changes: dict[str, Any] | None = None) -> Evaluated:
    """The evaluation of a model as it begins and of two baselines; targets in folder/targets-<workers>."""
    checkpoints = str(folder / f"evaluated-{worker.workers}")
    made = Checkpoints(checkpoints, train_config(), worker)
    made.save(make_step(data.manifest, worker), Progress(step=1), {}, best=True)
    made.wait()
    configs = {"intentrec": MODEL, "markov": MarkovConfig(), "popularity": PopularityConfig()}
    models = [Model(name, config, train_config(reader=READERS[name]), checkpoints) for name, config in configs.items()]
    settings = EvaluateConfig.model_validate({"filter_seen": False} | (changes or {}))
    url = str(folder / f"targets-{worker.workers}")
    with small_row_groups():
        return evaluate_models(EvaluationRun(data.url, url, models, settings, 7, "MRR"), worker)


SEVERAL: dict[str, dict[str, Any]] = {
    "own-items": {"kind": "recent", "order": ["recency", "frequency", "decay"], "half_life": [2.0, 30.0]},
    "trending": {"kind": "trending", "span": ["1h", "2d"], "live": [False, True]},
    "markov": {"kind": "markov"},
}
"""Baselines whose settings are chosen, and one that has none to choose."""


def chosen(data: Data, folder: Path, worker: Worker, changes: dict[str, Any] | None = None) -> Evaluated:
    """The evaluation of baselines whose settings are chosen, or of other ones."""
    models = [
        Model(name, ModelConfig.model_validate(section), train_config(metric="HR@5"), "")
        for name, section in (changes or SEVERAL).items()
    ]
    url = str(folder / f"chosen-{worker.workers}")
    settings = EvaluateConfig(filter_seen=False, resamples=200, metric="NDCG@10")
    return evaluate_models(EvaluationRun(data.url, url, models, settings, 7, "HR@5"), worker)


KNOWING = MODEL.model_copy(
    update={"knows": ["request", "history", "attributes", "recent", "transitions", "age", "intents"]}
)


def knowing(data: Data, folder: Path, worker: Worker, part: str = "") -> Any:
    """Of a model whose scores know everything, or one part: the query of the whole test batch, this worker's slice of
    its scores, the validation, and the best items.
    """
    model = KNOWING.model_copy(update={"knows": [part]}) if part else KNOWING
    step = make_step(data.manifest, worker, model, known=data.known, tables={"sharding": {"item": "row_wise"}})
    torch.manual_seed(5)
    for name, parameter in step.dense.items():
        if "scores." in name:  # some begin as zero
            torch.nn.init.normal_(parameter, std=0.3)
    (whole,) = (batch for batch, _ in data.reader("test", evaluate=True, tokens=10**9, shuffle_buffer=10**9).epoch(0))
    scorer = NeuralScorer(step, rows_at_once=7)
    with torch.no_grad():
        prediction = scorer.predict(whole)
        scores = scorer.scores(prediction.query)
    validation = validate(step, data.reader("validation", worker, evaluate=True), worker, filter_seen=False)
    ranker = CatalogueRanker(scorer, data.manifest.items, data.manifest.catalogue, worker, False)
    best = ranker.top(prediction.query, None, 5)
    return [part.numpy() for part in prediction.query], scores.numpy(), validation, [part.numpy() for part in best]


def neural(data: Data, folder: Path, worker: Worker, sharding: str = "table_wise") -> Any:
    """This worker's item rows, fetched in pieces, those of all places, and the validation of the model as it begins."""
    step = make_step(data.manifest, worker, tables={"sharding": {"item": sharding}})
    scorer = NeuralScorer(step, rows_at_once=7)
    table = weights(step)["item"][scorer.row_to_item(torch.arange(data.manifest.items))]
    reader = data.reader("validation", worker, evaluate=True)
    validation = validate(step, reader, worker, filter_seen=True)
    return scorer.rows_vD.numpy(), table.numpy(), validation
