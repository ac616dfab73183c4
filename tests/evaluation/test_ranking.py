"""Sharded, chunked ranking against brute force in one place."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from embeddings.sharding import table_states
from embeddings.workers import Worker
from evaluation.metrics import MISS
from evaluation.ranking import CatalogueRanker, NeuralScorer
from evaluation.slices import CatalogueSlice
from tests.evaluation.scenarios import KNOWING, MatrixScorer, knowing, neural, ranking, ranking_case
from tests.scenarios import SCENARIOS, TwoWorkers
from tests.small import MODEL, Data, make_step
from tests.threads import on_threads

pytestmark = pytest.mark.usefixtures("alone")
CASES = [name for name in SCENARIOS if name.startswith(("ranking", "top"))]


def brute_force(filtered: bool, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks with ties against the model, and the K best with ties for the lower index."""
    scores, targets, seen = ranking_case()
    ranks, items, values = [], np.zeros((len(targets), k), np.int64), np.full((len(targets), k), -np.inf, np.float32)
    for q, target in enumerate(targets):
        allowed = [item for item in range(2, scores.shape[1]) if not (filtered and item in seen[q])]
        better = sum(scores[q, item] >= scores[q, target] for item in allowed if item != target)
        ranks.append(better + 1 if target in allowed else MISS)
        for place, item in enumerate(sorted(allowed, key=lambda item, q=q: (-scores[q, item], item))[:k]):
            items[q, place], values[q, place] = item, scores[q, item]
    return np.array(ranks), items, values


@pytest.mark.parametrize("name", CASES)
def test_ranks_and_top_items_equal_brute_force_on_one_and_two_workers(
    name: str, data: Data, two_workers: TwoWorkers
) -> None:
    """Uneven numbers of targets, none on one worker, small chunks; unknown and filtered targets are misses."""
    arguments = SCENARIOS[name][2]
    expected = brute_force(arguments["filtered"], arguments.get("k", 5))
    one = ranking(data, Path(), Worker(), **arguments)
    two = [np.concatenate(parts) for parts in zip(*two_workers.result(name), strict=True)]
    for ours, sharded, reference in zip(one, two, expected, strict=True):
        np.testing.assert_array_equal(ours, reference)
        np.testing.assert_array_equal(sharded, reference)
    ranks = expected[0]
    assert ranks[0] == ranks[1] == MISS
    assert (ranks[5] == MISS) == arguments["filtered"]


def test_a_score_that_is_nan_is_told() -> None:
    scores = np.zeros((1, 5), dtype=np.float32)
    scores[0, 3] = np.nan
    ranker = CatalogueRanker(MatrixScorer(scores, Worker()), 5, 5, Worker(), False)
    with pytest.raises(FloatingPointError, match="NaN"):
        ranker.ranks((torch.zeros(1, dtype=torch.int64),), torch.tensor([2]), None)


def test_a_worker_without_items_ranks_those_of_the_others() -> None:
    """Nine items on four workers: 3, 3, 3 and none."""
    scores = np.random.default_rng(4).integers(0, 5, (8, 9)).astype(np.float32)
    target = np.array([2, 3, 4, 5, 6, 7, 8, 1])

    def rank(worker: Worker) -> tuple[torch.Tensor, torch.Tensor]:
        ranker = CatalogueRanker(MatrixScorer(scores, worker), 9, 9, worker, False)
        queries = torch.arange(8)[2 * worker.rank : 2 * worker.rank + 2]
        return ranker.ranks((queries,), torch.from_numpy(target)[queries], None), ranker.top((queries,), None, 4)[0]

    ranks, top = (torch.cat(parts) for parts in zip(*on_threads(4, rank), strict=True))
    for q in range(8):
        known = scores[q, 2:]
        assert ranks[q] == ((known >= scores[q, target[q]]).sum() if target[q] >= 2 else MISS)
        assert top[q].tolist() == (2 + np.argsort(-known, kind="stable")[:4]).tolist()


@pytest.mark.parametrize("name", ["neural", "neural/row_wise"])
def test_the_neural_scorer_has_every_row_of_the_item_table_once(name: str, data: Data, two_workers: TwoWorkers) -> None:
    one, table, _ = neural(data, Path(), Worker())
    np.testing.assert_array_equal(one, table)
    (first, whole, _), (second, _, _) = two_workers.result(name)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(whole, table)
    assert abs(len(first) - len(second)) <= 1


def test_rows_that_lie_in_slices_are_ranked_without_a_copy(data: Data) -> None:
    step = make_step(data.manifest, tables={"sharding": {"item": "row_wise"}})
    rows = NeuralScorer(step).rows_vD
    (local,) = dict(table_states(step.parallel))["item"].local_shards()
    assert rows.data_ptr() == local.tensor.data_ptr()


def test_rows_that_are_fetched_are_in_memory_once(data: Data) -> None:
    """And one part of them besides."""
    step = make_step(data.manifest, model=MODEL.model_copy(update={"temperature": 0.2}))
    columns, parts, alive = step.recommender.scores.columns, [], []

    def noted(vectors_ND: torch.Tensor, label_NL: torch.Tensor | None) -> torch.Tensor:
        alive.append(sum(part() is not None for part in parts))
        part_NX = columns(vectors_ND, label_NL)
        parts.append(weakref.ref(part_NX))
        return part_NX

    step.recommender.scores.columns = noted  # type: ignore[method-assign]
    rows = NeuralScorer(step, rows_at_once=7).rows_vD
    assert len(alive) > 4
    assert max(alive) == 1
    whole = NeuralScorer(step).rows_vD
    assert whole is parts[-1]()
    assert torch.equal(whole, rows)


@pytest.mark.parametrize("name", ["neural", "neural/row_wise"])
def test_validation_is_the_same_on_two_workers(name: str, data: Data, two_workers: TwoWorkers) -> None:
    reference = neural(data, Path(), Worker())[2]
    for _, _, validation in two_workers.result(name):
        assert validation.metrics == pytest.approx(reference.metrics)
        assert validation.intents == pytest.approx(reference.intents)
        assert validation.attention == pytest.approx(reference.attention, rel=1e-5)


@pytest.mark.parametrize("part", ["history", "recent", "attributes", ""])
def test_scores_are_mixed_with_what_the_query_points_at(part: str, data: Data) -> None:
    """By sums of exponentials, a candidate at a time; items that training does not know are among them."""
    (query, *candidates), scores, _, _ = knowing(data, Path(), Worker(), part)
    rows = CatalogueSlice(data.manifest.items, data.manifest.catalogue, Worker())
    assert data.manifest.catalogue > data.manifest.items
    assert scores.shape == (len(query), len(rows))
    if part == "attributes":
        assert np.isfinite(scores).all()
        return
    scorer = NeuralScorer(make_step(data.manifest, model=KNOWING.model_copy(update={"knows": []})))
    assert candidates
    item_QW, logit_QW = candidates
    others = 0
    for q in range(len(query)):
        added = np.zeros(data.manifest.catalogue)
        for item, logit in zip(item_QW[q], logit_QW[q], strict=True):
            added[item] += np.exp(np.float64(logit))
        item_v = scorer.row_to_item(rows.rows).numpy()
        if part:
            table = np.zeros(len(rows))
            table[: rows.known] = np.exp(query[q].astype(np.float64) @ scorer.rows_vD.numpy().T)
            with np.errstate(divide="ignore"):  # nothing gives an item without a row
                expected = np.log(table + added[item_v])
            np.testing.assert_allclose(scores[q], expected, rtol=1e-4, atol=1e-4)
        others += (added[data.manifest.items :] > 0).sum()
        assert np.isfinite(scores[q][added[item_v] > 0]).all()
    assert others > 0 or part == "history"  # tests/trainer/scores copies items that training does not know


@pytest.mark.parametrize(
    ("knows", "temperature"),
    [(["age"], None), (["intents"], None), ([], 0.2), (["attributes", "age", "intents"], 0.2)],
)
def test_ranking_scores_items_as_training_does(data: Data, knows: list[str], temperature: float | None) -> None:
    """Training makes one-hot columns of candidates; ranking has the catalogue in another form."""
    model = KNOWING.model_copy(update={"knows": knows, "temperature": temperature})
    step = make_step(data.manifest, model=model, known=data.known)
    torch.manual_seed(5)
    for parameter in step.recommender.scores.parameters():
        torch.nn.init.normal_(parameter)
    batch, part = data.batch(range(9)), CatalogueSlice(data.manifest.items, data.manifest.catalogue, Worker())
    with torch.no_grad():
        scorer = NeuralScorer(step, rows_at_once=7)
        scores = scorer.scores(scorer.predict(batch).query)
        items = scorer.row_to_item(part.rows[: scores.shape[1]])
        trained = step.recommender(step.recommender.ask(batch, *step.candidates.of(batch, items, None)))
    assert scores.shape[1] == (len(part) if "attributes" in knows else part.known)
    rows = trained.candidates_CD
    if trained.adds_C is not None:
        rows = torch.cat([rows, torch.eye(trained.query[0].shape[1] - rows.shape[1])[trained.adds_C]], dim=1)
    expected = trained.query[0] @ rows.T
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert (scores.std(dim=1) > 0.1).all()


def test_what_scores_know_is_ranked_the_same_on_two_workers(data: Data, two_workers: TwoWorkers) -> None:
    _, scores, validation, best = knowing(data, Path(), Worker())
    first, second = two_workers.result("knowing")
    slices = [CatalogueSlice(data.manifest.items, data.manifest.catalogue, Worker(rank, 2)) for rank in (0, 1)]
    whole = CatalogueSlice(data.manifest.items, data.manifest.catalogue, Worker())
    for part, result in zip(slices, (first, second), strict=True):
        np.testing.assert_allclose(result[1], scores[:, whole.columns(part.rows).numpy()], rtol=1e-4, atol=1e-4)
        assert result[2].metrics == pytest.approx(validation.metrics)
        np.testing.assert_array_equal(result[3][0], best[0])
