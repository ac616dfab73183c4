"""The distribution of a user's next hidden intent, from what the log shows before the request and the request's time.

A forward filter over all intents (action, genre, content type, age) of a block of users in lock step: an intent is kept
or drawn anew, the new one from what is believed of the user (`beliefs`), and each event weighs the intents by how
probable it is under them. Session and part of the day follow from the times: a session never leaves its quarter of a
day. What is kept is one distribution a user and, for each event of the block, 192 numbers.

Shapes: U users of the block, E their events in lock step (every user's first one, then every second one, ...), Q events
that are asked for, A actions (B: before), G genres, C content types, K ages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.rule.beliefs import TINY, Belief, Draws, Ended, Known, parts_of, traits_of
from evaluation.rule.cells import Cells
from ingest.arrays.jagged import Integers, ranges
from ingest.sources.simulate_rule import (
    ACTIONS,
    AGES,
    CONTENT_TYPES,
    CONTINUE,
    DISCOVER,
    GENRES,
    KIDS,
    KIDS_GENRES,
    REWATCH,
    TRENDING,
    Array,
    Memory,
    action_weights,
    keep_probability,
    recent_shares,
)
from ingest.sources.simulate_truth import DAY, Intents, MadeLog, Tastes
from ingest.sources.simulate_world import SLOT_SECONDS

SLOT = 1000 * SLOT_SECONDS
INTENT = (len(ACTIONS), len(GENRES), len(CONTENT_TYPES), len(AGES))
KIDS_GENRE = np.pad(KIDS_GENRES, (0, len(GENRES) - len(KIDS_GENRES)))


@dataclass(frozen=True)
class Requests:
    """All that the rule knows of events before they happen: (E,) each, but for the two lists."""

    day: Array  # of the log, from 0
    part: Array  # of the day
    keep: Array  # probability that the intent is that of the event before
    last: Array  # item of the event before, or -1
    begun: Array  # (E, B)
    films: Array  # (E, F)

    def take(self, rows: Integers) -> Requests:
        return Requests(**{name: values[rows] for name, values in vars(self).items()})

    def nothing(self) -> tuple[Array, Array]:
        """Whether there is no begun series, and no film, so that such intents discover."""
        return self.begun[:, 0] < 0, self.films[:, 0] < 0


@dataclass(frozen=True)
class Outlook:
    """The next intent: joint probabilities with its being kept or new, (Q, A, G, C, K) each."""

    kept: Array
    new: Array


class History:
    """The events of a block of users up to the last that is asked for, in lock step.

    `users`: places in the log; `ends`: how many events of each, the last one being asked for. Each has at least one.
    """

    def __init__(self, log: MadeLog, cells: Cells, users: Integers, ends: Integers) -> None:
        self.cells, self.order = cells, np.argsort(-ends, kind="stable")
        self.users = users[self.order]
        count_U = ends[self.order]
        rank_E = np.repeat(np.arange(len(users)), count_U)
        step_E = ranges(np.zeros_like(count_U), count_U)
        lock_step = np.lexsort((rank_E, step_E))
        self.rank, self.step = rank_E[lock_step], step_E[lock_step]
        self.event = log.offsets[self.users][self.rank] + self.step
        """Place of each event in the log; `users`, `rank`: the users, most events first, and the number of each."""
        sizes = np.bincount(self.step)
        ends_of = np.cumsum(sizes)
        self.steps = [slice(end - size, end) for size, end in zip(sizes.tolist(), ends_of.tolist(), strict=True)]
        self.item, self.action = log.item[self.event].astype(np.int64), log.action[self.event].astype(np.int64)
        self.requests = self._requests(log)

    def _requests(self, log: MadeLog) -> Requests:
        since_E = log.time[self.event] - log.first_time
        first_E = self.step == 0
        before_E = np.where(first_E, since_E, log.time[self.event - ~first_E] - log.first_time)
        rule = self.cells.pools.rule
        keep_E = keep_probability(rule, since_E // SLOT != before_E // SLOT, (since_E - before_E) / DAY)
        memory = Memory(self.cells.pools.catalogue, rule, self.steps[0].stop)
        begun_EB = np.empty((len(self.event), rule.begun_series), np.int64)
        films_EF = np.empty((len(self.event), rule.recent_films), np.int64)
        last_E = np.full(len(self.event), -1)
        for number, here in enumerate(self.steps):
            size = here.stop - here.start
            begun_EB[here], films_EF[here] = memory.begun[:size], memory.films[:size]
            if number:
                before = self.steps[number - 1]
                last_E[here] = self.item[before.start : before.start + size]
            memory.watch(self.item[here])
        part_E = since_E % DAY // SLOT
        return Requests(since_E // DAY, part_E, np.where(first_E, 0.0, keep_E), last_E, begun_EB, films_EF)

    def rows(self, user_Q: Integers, place_Q: Integers) -> Integers:
        """The rows of events, by the user's number in the block and the event's place in his history."""
        starts = np.array([here.start for here in self.steps])
        return starts[place_Q] + np.argsort(self.order)[user_Q]

    def likelihood(self) -> tuple[Array, Array, Array]:
        """How probable each event is: which actions of the intent show what it shows (E, A), and the item under each
        cell of a new and of a kept intent, two (E, G, C, K).
        """
        requests, shown = self.requests, self.action
        shows_EA = shown[:, None] == np.arange(len(ACTIONS))
        for action, nothing in zip((CONTINUE, REWATCH), requests.nothing(), strict=True):
            shows_EA[:, action] |= nothing & (shown == DISCOVER)
        trending_E = (shown == TRENDING).astype(np.int64)
        new = self.cells.share(requests.day, requests.last, trending_E, self.item)
        follow_E, share_E = self.cells.next_in_franchise(requests.day, requests.last, self.item)
        follow_E = np.where((shown == DISCOVER) | (shown == KIDS), follow_E, 0.0)
        kept = (1 - follow_E)[:, None, None, None] * new + (follow_E * share_E)[:, None, None, None]
        for action, listed in ((CONTINUE, requests.begun), (REWATCH, requests.films)):
            rows = np.flatnonzero(shown == action)
            shares = recent_shares(listed[rows], self.cells.recency)
            again = (shares * (listed[rows] == self.item[rows, None])).sum(axis=1)
            new[rows] = kept[rows] = again[:, None, None, None]
        return shows_EA, new, kept


def drawn(intents: Intents) -> Outlook:
    """Intents that are known, as distributions."""
    places = (np.arange(len(intents.kept)), intents.action, intents.genre, intents.content_type, intents.age)
    kept, new = np.zeros((2, len(intents.kept), *INTENT))
    kept[places], new[places] = intents.kept, ~intents.kept
    return Outlook(kept, new)


def after(before: Intents, tastes: Tastes, requests: Requests) -> Outlook:
    """What is known of the next intents where those before them and the users' tastes are, a row each."""
    known = drawn(before)
    before_Q, keep_Q = known.kept + known.new, requests.keep[:, None, None, None, None]
    ended = ended_of(before_Q)
    draws = Known(tastes).draws(odds(requests.part, requests.last >= 0), ended)
    action_QA = np.einsum("qb,qba->qa", ended.action, draws.action)
    return Outlook(keep_Q * before_Q, (1 - keep_Q) * action_QA[:, :, None, None, None] * _cells_of(draws))


def odds(part_Q: Array, later_Q: Array) -> Array:
    """How much likelier (Q, B, A) an action is at a part of the day after another; alike where there was none."""
    before_QB = np.where(later_Q[:, None], np.arange(len(ACTIONS)), -1)
    return action_weights(np.ones(len(ACTIONS)), part_Q[:, None], before_QB)


def _cells_of(draws: Draws) -> Array:
    """The distribution of all but the action, given the action: (U, A, G, C, K), of which only kids has another."""
    genre, content_type, age = parts_of(draws.traits)
    rest = content_type[:, :, None] * age[:, None]
    cells = np.empty((len(rest), *INTENT))
    cells[:] = (genre[:, :, None, None] * rest[:, None])[:, None]
    cells[:, KIDS] = KIDS_GENRE[:, None, None] * rest[:, None]
    return cells


def ended_of(intent: Array) -> Ended:
    """The marginals of a distribution of intents, (U, A, G, C, K)."""
    genre_UAG = intent.sum(axis=(3, 4))
    rest_UCK = intent.sum(axis=(1, 2))
    genre_UG = genre_UAG.sum(axis=1) - genre_UAG[:, KIDS]
    return Ended(genre_UAG.sum(axis=2), traits_of(genre_UG, rest_UCK.sum(axis=2), rest_UCK.sum(axis=1)))


def filtered(history: History, belief: Belief, asked: Integers) -> Outlook:
    """What is known of the intents of the events `asked` (rows of the history) before each of them."""
    shows_EA, new_likelihood, kept_likelihood = history.likelihood()
    requests = history.requests
    odds_EBA = odds(requests.part, history.step > 0)
    order = np.argsort(asked, kind="stable")
    found = Outlook(*np.zeros((2, len(asked), *INTENT)))
    intent, ended = np.zeros((history.steps[0].stop, *INTENT)), None
    for here in history.steps:
        size = here.stop - here.start
        keep = requests.keep[here]
        if here.start:
            intent = intent[:size]
            ended = ended_of(intent)
        draws = belief.draws(odds_EBA[here], ended)
        before_UB = np.full((size, len(ACTIONS)), 1 / len(ACTIONS)) if ended is None else ended.action
        cells, again = _cells_of(draws), keep[:, None, None, None, None] * intent
        action_UA = np.einsum("ub,uba->ua", before_UB, draws.action) * (1 - keep)[:, None]

        wanted = order[slice(*np.searchsorted(asked[order], (here.start, here.stop)))]
        rows = asked[wanted] - here.start
        found.kept[wanted] = again[rows]
        found.new[wanted] = action_UA[rows, :, None, None, None] * cells[rows]

        shows = shows_EA[here, :, None, None, None]
        again *= shows * kept_likelihood[here, None]
        cells *= shows * new_likelihood[here, None]
        likelihood_UBA = before_UB[:, :, None] * (cells.sum(axis=(2, 3, 4)) * (1 - keep)[:, None])[:, None]
        drawn_UBA = draws.action * likelihood_UBA
        intent = again + action_UA[:, :, None, None, None] * cells
        kept_U = again.sum(axis=(1, 2, 3, 4))
        total_U = np.maximum(kept_U + drawn_UBA.sum(axis=(1, 2)), TINY)
        intent /= total_U[:, None, None, None, None]
        belief.learn(drawn_UBA / total_U[:, None, None], kept_U, likelihood_UBA)
    return found
