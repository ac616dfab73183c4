"""The filter against enumerating every sequence of intents, and against what it may not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evaluation.rule.answers import Answers, Slice, answers
from evaluation.rule.beliefs import Known, Learned, absorb
from evaluation.rule.cells import Cells
from evaluation.rule.filter import INTENT, KIDS_GENRE, History, Outlook, after, filtered
from ingest.sources.simulate_rule import (
    KIDS,
    KIDS_GENRES,
    Memory,
    States,
    action_weights,
    item_probability,
    keep_probability,
    shown_action,
)
from ingest.sources.simulate_truth import MadeLog

EVENTS = 4
ALL = np.stack([axis.ravel() for axis in np.indices(INTENT)])
"""Every intent: its action, genre, content type and age."""


@pytest.fixture(scope="module")
def log(prepared: dict[str, str]) -> MadeLog:
    return MadeLog(str(Path(prepared["simulated"]).parent / "log"))


@pytest.fixture(scope="module")
def cells(log: MadeLog) -> Cells:
    return Cells(log.pools)


def new_probability(log: MadeLog, user: int, part: int, before: int) -> np.ndarray:
    """Of every intent, as the docs have it."""
    action, genre, content_type, age = ALL
    weights = action_weights(log.tastes.actions[[user]], np.array([part]), np.array([before]))[0]
    by_taste = log.tastes.genres[user][genre]
    by_kids = np.array([*KIDS_GENRES, *[0] * 13])[genre]
    rest = log.tastes.content_types[user][content_type] * log.tastes.ages[user][age]
    return (weights / weights.sum())[action] * np.where(action == KIDS, by_kids, by_taste) * rest


def enumerated(log: MadeLog, user: int, events: int) -> Outlook:
    """The next intent after `events` events, from every sequence of intents that they can have had."""
    begin = log.offsets[user]
    memory = Memory(log.pools.catalogue, log.pools.rule, 1)
    paths: list[tuple[float, int]] = []
    last = -1
    for event in range(begin, begin + events + 1):
        second = (log.time[event] - log.first_time) / 1000
        day, part = int(second // 86_400), int(second % 86_400 // 21_600)
        keep = 0.0
        if event > begin:
            gap = (log.time[event] - log.time[event - 1]) / 86_400_000
            new_session = second // 21_600 != (log.time[event - 1] - log.first_time) / 1000 // 21_600
            keep = float(keep_probability(log.pools.rule, np.array([new_session]), np.array([gap]))[0])
        drawn = {
            before: (1 - keep) * new_probability(log, user, part, before)
            for before in {ALL[0][intent] for _, intent in paths} or {-1}
        }
        if event == begin + events:
            kept, new = np.zeros((2, 1, ALL.shape[1]))
            for probability, intent in paths:
                kept[0, intent] += keep * probability
                new[0] += probability * drawn[ALL[0][intent]]
            total = sum(probability for probability, _ in paths)
            return Outlook(*((values / total).reshape(1, *INTENT) for values in (kept, new)))
        count = ALL.shape[1]
        item = np.full(count, log.item[event])
        likelihood = []
        for kept_flag in (False, True):
            lists = memory.begun.repeat(count, 0), memory.films.repeat(count, 0)
            flags = np.full(count, kept_flag)
            states = States(*ALL, flags, np.full(count, day + log.pools.first_day), np.full(count, last), *lists)
            shown = shown_action(states) == log.action[event]
            likelihood.append(shown * item_probability(log.pools, states, item))
        possible = np.flatnonzero(likelihood[0]).tolist()
        longer = [(drawn[ALL[0][before]][z] * p * likelihood[0][z], z) for p, before in paths for z in possible]
        if not paths:
            longer = [(drawn[-1][z] * likelihood[0][z], z) for z in possible]
        longer += [(p * keep * likelihood[1][z], z) for p, z in paths]
        paths = [(p, z) for p, z in longer if p > 0]
        last = int(log.item[event])
        memory.watch(log.item[[event]].astype(np.int64))
    raise AssertionError


def test_with_tastes_known_it_is_the_sum_over_all_sequences(log: MadeLog, cells: Cells) -> None:
    users = np.flatnonzero(np.diff(log.offsets) > EVENTS)[:14]
    shown = {int(log.action[event]) for user in users for event in log.offsets[user] + np.arange(EVENTS)}
    assert shown == set(range(5))
    ends = 2 + users % (EVENTS - 1) + (users % (EVENTS - 1) == 0)
    history = History(log, cells, users, ends)
    asked = history.rows(np.arange(len(users)), ends - 1)
    found = filtered(history, Known(log.tastes.take(history.users)), asked)
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        expected = enumerated(log, user, end - 1)
        np.testing.assert_allclose(found.kept[row], expected.kept[0], rtol=1e-8, atol=1e-15)
        np.testing.assert_allclose(found.new[row], expected.new[0], rtol=1e-8, atol=1e-15)


def test_with_the_intent_before_known_nothing_else_of_the_past_is_needed(log: MadeLog, cells: Cells) -> None:
    """`after` is the filter of a user who has had one intent for certain."""
    users = np.arange(40)
    ends = np.full(40, 3)
    history = History(log, cells, users, ends)
    asked = history.rows(users, ends - 1)
    before = log.intents.take(history.event[asked] - 1)
    found = after(before, log.tastes.take(users), history.requests.take(asked))
    np.testing.assert_allclose((found.kept + found.new).sum(axis=(1, 2, 3, 4)), 1)
    for row in range(40):
        keep = history.requests.keep[asked[row]]
        np.testing.assert_allclose(found.kept[row].sum(), keep)
        intent = tuple(int(getattr(before, name)[row]) for name in ("action", "genre", "content_type", "age"))
        assert found.kept[row][intent] == pytest.approx(keep)
        part = history.requests.part[asked[row]]
        expected = (1 - keep) * new_probability(log, row, part, intent[0]).reshape(INTENT)
        np.testing.assert_allclose(found.new[row], expected, rtol=1e-9, atol=1e-15)


def probabilities(cells: Cells, found: Answers) -> np.ndarray:
    """Of every item of the catalogue."""
    items = np.arange(cells.pools.items)
    probability = Slice(cells, items).probability(found)
    rows, places = np.nonzero(found.listed >= 0)
    np.add.at(probability, (rows, found.listed[rows, places]), found.probability[rows, places])
    return probability


def with_events(log: MadeLog, time: np.ndarray, item: np.ndarray, action: np.ndarray) -> MadeLog:
    """The same log with other events."""
    other = MadeLog(log.folder)
    other.__dict__["_events"] = (log.offsets, time, item, action)
    return other


def test_neither_the_target_nor_what_comes_later_is_known(log: MadeLog, cells: Cells) -> None:
    """All that is random about the future is drawn anew; only the target's time stays."""
    rng = np.random.default_rng(0)
    counts = np.diff(log.offsets)
    users = np.flatnonzero(counts > 8)[:60]
    place_Q = np.concatenate([np.full(60, 3), np.full(60, 6)])
    user_Q = np.tile(np.arange(60), 2)
    time, item, action = log.time.copy(), log.item.copy(), log.action.copy()
    for user in users:
        later = slice(log.offsets[user] + 6, log.offsets[user + 1])
        item[later] = rng.integers(0, 60, later.stop - later.start)
        action[later] = rng.integers(0, 5, later.stop - later.start)
        time[later.start + 1 : later.stop] += rng.integers(1, 10**6)
    found = []
    for read, ends in ((log, counts[users]), (with_events(log, time, item, action), np.full(60, 7))):
        history = History(read, cells, users, ends)
        asked = history.rows(user_Q, place_Q)
        outlook = filtered(history, Learned(len(users), log.config.user), asked)
        found.append(answers(cells, history.requests.take(asked), outlook))
    for name, value in vars(found[0]).items():
        np.testing.assert_allclose(getattr(found[1], name), value, rtol=1e-10, atol=1e-18)

    item[log.offsets[users] + 1] = 3  # the past is known
    history = History(with_events(log, time, item, action), cells, users, np.full(60, 7))
    asked = history.rows(user_Q, place_Q)
    changed = filtered(history, Learned(len(users), log.config.user), asked)
    assert (np.abs(changed.new - outlook.new).max(axis=(1, 2, 3, 4)) > 1e-6).mean() > 0.8


def test_the_learned_filter_is_calibrated_and_worse_than_the_one_that_knows_the_tastes(
    log: MadeLog, cells: Cells
) -> None:
    """Over all events: how many with an item of each genre are expected and come; and the intents' log-likelihood."""
    users, ends = np.arange(len(log.offsets) - 1), np.diff(log.offsets)
    history = History(log, cells, users, ends)
    asked = np.arange(len(history.event))
    truth = log.intents.take(history.event)
    places = (asked, truth.action, truth.genre, truth.content_type, truth.age)
    genres_NG = cells.genres.astype(float)
    likelihood = {}
    for name, belief in (
        ("learned", Learned(len(users), log.config.user)),
        ("prior", _Unlearning(len(users), log.config.user)),
        ("known", Known(log.tastes.take(history.users))),
    ):
        outlook = filtered(history, belief, asked)
        intent = outlook.kept + outlook.new
        np.testing.assert_allclose(intent.sum(axis=(1, 2, 3, 4)), 1)
        likelihood[name] = np.log(intent[places]).mean()
        if name == "prior":
            continue
        expected_EG = probabilities(cells, answers(cells, history.requests, outlook)) @ genres_NG
        spread_G = np.sqrt((expected_EG * (1 - expected_EG)).sum(axis=0))
        assert (np.abs((genres_NG[history.item] - expected_EG).sum(axis=0)) < 4 * spread_G).all()
        assert (spread_G < 0.05 * expected_EG.sum(axis=0)).all()
    assert likelihood["known"] > likelihood["learned"] + 0.02
    assert likelihood["learned"] > likelihood["prior"] + 0.1


class _Unlearning(Learned):
    def learn(self, *given: object) -> None:
        pass


def test_absorbed_counts_keep_mean_and_variance() -> None:
    rng = np.random.default_rng(1)
    alpha, weight = rng.uniform(0.2, 3, (2, 3, 5)), rng.dirichlet(np.ones(6), (2, 3))[..., :5]
    alpha[0, 1, 3:] = weight[0, 1, 3:] = 0  # padding
    absorbed = alpha.copy()
    absorb(absorbed, weight)
    for place in np.ndindex(2, 3):
        kind = rng.choice(6, 200_000, p=[*weight[place], 1 - weight[place].sum()])
        gamma = rng.standard_gamma(alpha[place] + np.eye(6)[kind, :5])
        sample = gamma / gamma.sum(axis=1, keepdims=True)
        total = absorbed[place].sum()
        mean = absorbed[place] / total
        np.testing.assert_allclose(mean, sample.mean(axis=0), atol=4e-3)
        variance = (mean * (1 - mean)).sum() / (total + 1)
        assert variance == pytest.approx(sample.var(axis=0).sum(), rel=0.02)
    assert (absorbed[0, 1, 3:] == 0).all()
    certain = alpha.copy()
    absorb(certain, np.broadcast_to(np.eye(5)[1], alpha.shape))
    np.testing.assert_allclose(certain, alpha + np.eye(5)[1])
    nothing = alpha.copy()
    absorb(nothing, 0.7 * alpha / alpha.sum(axis=2, keepdims=True))
    np.testing.assert_allclose(nothing, alpha)


def test_the_genres_of_kids_are_the_rules() -> None:
    assert KIDS_GENRE.tolist() == [*KIDS_GENRES, *[0] * 13]
