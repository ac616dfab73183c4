"""All intents at once against the rule's own answer for one intent."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.rule.answers import Slice, answers
from evaluation.rule.cells import Cells
from evaluation.rule.filter import INTENT, Requests, drawn
from ingest.sources.simulate import SimulateConfig, make_world
from ingest.sources.simulate_rule import DISCOVER, TRENDING, States, item_probability
from ingest.sources.simulate_truth import Intents

CONFIG = SimulateConfig(users=1, items=40, days=25, seed=2)
QUERIES = 30


@pytest.fixture(scope="module")
def cells() -> Cells:
    return Cells(make_world(CONFIG)[1])


def asked(cells: Cells, seed: int) -> tuple[Requests, np.random.Generator]:
    """Requests on random days, after an item that is out or none, some with nothing begun or seen."""
    rng = np.random.default_rng(seed)
    day = rng.integers(0, CONFIG.days, QUERIES)
    out = cells.released[day, 3]
    types = cells.pools.catalogue.content_type
    series, films = (np.flatnonzero(types[: out.min()] == content_type) for content_type in (1, 0))
    assert len(series) >= 5
    assert len(films) >= 8
    begun = np.stack([rng.permutation(series)[:5] for _ in range(QUERIES)])
    seen = np.stack([rng.permutation(films)[:8] for _ in range(QUERIES)])
    for lists in (begun, seen):
        lists[np.arange(lists.shape[1]) >= rng.integers(0, lists.shape[1] + 1, QUERIES)[:, None]] = -1
    last = np.where(rng.random(QUERIES) < 0.2, -1, rng.integers(0, out))
    return Requests(day, day % 4, np.zeros(QUERIES), last, begun, seen), rng


def states(requests: Requests, intents: Intents, first_day: int) -> States:
    whole = {name: values.astype(np.int64) for name, values in vars(intents).items() if name != "kept"}
    return States(
        **whole,
        kept=intents.kept,
        day=requests.day + first_day,
        last=requests.last,
        begun=requests.begun,
        films=requests.films,
    )


@pytest.mark.parametrize("action", [DISCOVER, TRENDING])
def test_the_share_of_an_item_is_that_of_the_rule(cells: Cells, action: int) -> None:
    requests, rng = asked(cells, 0)
    item = rng.integers(0, cells.released[requests.day, 3])
    kind = np.full(QUERIES, int(action == TRENDING))
    share = cells.share(requests.day, requests.last, kind, item)
    levels = cells.resolve(requests.day, requests.last, kind).level
    assert set(levels.ravel()) == {0, 1, 2, 3}
    for genre, content_type, age in np.ndindex(*INTENT[1:]):
        each = [np.full(QUERIES, value) for value in (action, genre, content_type, age)]
        asks = states(requests, Intents(*each, kept=np.zeros(QUERIES, bool)), cells.pools.first_day)
        expected = item_probability(cells.pools, asks, item)
        np.testing.assert_allclose(share[:, genre, content_type, age], expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_with_the_intent_known_every_item_has_its_probability(cells: Cells, seed: int) -> None:
    requests, rng = asked(cells, seed)
    intents = Intents(*(rng.integers(0, count, QUERIES) for count in INTENT), kept=rng.random(QUERIES) < 0.6)
    found = answers(cells, requests, drawn(intents))
    items = np.concatenate([[-1, -1], rng.permutation(CONFIG.items)])
    probability = Slice(cells, items).probability(found)
    for row, (listed, more) in enumerate(zip(found.listed, found.probability, strict=True)):
        for item, value in zip(listed, more, strict=True):
            probability[row, items == item] += value * (item >= 0)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-9)
    asks = states(requests, intents, cells.pools.first_day)
    for column, item in enumerate(items[2:], 2):
        expected = item_probability(cells.pools, asks, np.full(QUERIES, item))
        np.testing.assert_allclose(probability[:, column], expected, rtol=1e-9, atol=1e-15)
    assert (probability[:, :2] == 0).all()
