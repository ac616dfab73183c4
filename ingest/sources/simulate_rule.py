"""The rule of the made log, and nothing else: what is watched next, given a hidden intent, in closed form.

The simulator draws from this rule, a test holds its draws against it, and the best possible predictor can be
computed from it. Pools of items (a genre and a content type, a franchise, ...) lie behind one another in one
array, each in the order of release: items of an age are a contiguous range of their pool, and one draw or one
probability costs a few binary searches, O(log entries), whatever the size of the catalogue. About 6 entries of
24 bytes an item are held. docs/simulation.md has the formulas.

Shapes: Q states asked at once, N items in the order of release, G genres, A actions, B begun series, F films.
Items, genres, actions, ... are indices into the catalogue and the tuples below; -1 stands for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ingest.settings import Settings

Array = NDArray[Any]

ACTIONS = ("discover", "continue_watching", "rewatch", "kids", "trending")
DISCOVER, CONTINUE, REWATCH, KIDS, TRENDING = range(5)
CONTENT_TYPES = ("film", "series")
FILM, SERIES = range(2)
AGES = ("new", "recent", "evergreen")
NEW_DAYS, RECENT_DAYS = 7, 30
PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")
GENRES = (
    "Kids", "Animation", "Family", "Action", "Adventure", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "History", "Horror", "Mystery", "Romance", "Science Fiction", "Sport",
)  # fmt: skip
KIDS_GENRES = (0.5, 0.3, 0.2)  # of the first three genres, when the action is kids

# How much likelier an action is at a part of the day (PARTS_OF_DAY x ACTIONS) ...
PART_FACTORS = np.array(
    [[0.8, 1.6, 1.4, 0.05, 0.8], [1.0, 0.8, 0.8, 1.8, 1.2], [1.2, 0.6, 1.0, 2.2, 1.2], [1.0, 1.6, 0.9, 0.4, 1.0]]
)
# ... and after an action (ACTIONS before x ACTIONS after).
ACTION_TRANSITIONS = np.array(
    [
        [0.6, 2.4, 0.8, 0.7, 0.9],
        [1.8, 0.6, 0.9, 0.7, 1.2],
        [1.3, 0.9, 0.7, 0.8, 1.4],
        [0.8, 0.9, 0.9, 1.6, 0.8],
        [1.5, 1.5, 1.0, 0.8, 0.5],
    ]
)


class Rule(Settings):
    """Parameters of the rule. Probabilities are per event, exponents and lengths as documented in simulation.md."""

    stay: float = Field(default=0.85, ge=0, le=1, description="probability that an intent stays inside a session")
    carry: float = Field(
        default=0.5, ge=0, le=1, description="the same from one session to the next, at no time between"
    )
    carry_days: float = Field(default=3.0, gt=0, description="days after which `carry` has fallen to 1/e")
    follow: float = Field(
        default=0.4, ge=0, le=1, description="share of kept discover/kids intents that follow the franchise"
    )
    trending_exponent: float = Field(default=1.6, gt=0, le=4, description="popularity is raised to it when trending")
    recency: float = Field(
        default=0.5, gt=0, lt=1, description="weight of a begun series against the next more recent one"
    )
    begun_series: int = Field(
        default=5, ge=1, le=100, description="begun series that a user keeps in mind, most recent first"
    )
    recent_films: int = Field(
        default=8, ge=1, le=100, description="films that a user may watch again, most recent first"
    )


@dataclass(frozen=True)
class Catalogue:
    """N items in the order of release: what the log shows, and what it does not (weight, franchise, episodes)."""

    genres: Array  # (N, G) bool
    content_type: Array  # (N,) 0 film, 1 series
    release_day: Array  # (N,) days since 1970, not decreasing
    weight: Array  # (N,) float64 > 0
    franchise: Array  # (N,)
    episodes: Array  # (N,) 1 for a film


@dataclass
class States:
    """All that the next item depends on, for Q events: (Q,) each, but for the two lists."""

    action: Array
    genre: Array
    content_type: Array
    age: Array
    kept: Array  # bool: the intent is that of the event before
    day: Array  # days since 1970
    last: Array  # item watched before, or -1
    begun: Array  # (Q, B) begun series, most recent first, -1 behind
    films: Array  # (Q, F) films watched, most recent first, -1 behind

    def take(self, rows: Array) -> States:
        return States(**{name: values[rows] for name, values in vars(self).items()})


class Pools:
    """The catalogue's pools, for the days `first_day` .. `first_day` + `days` - 1 (days since 1970)."""

    def __init__(self, catalogue: Catalogue, rule: Rule, first_day: int, days: int) -> None:
        self.catalogue, self.rule, self.first_day = catalogue, rule, first_day
        self.items, self.genres = catalogue.genres.shape
        item, genre = np.nonzero(catalogue.genres)
        everything = np.arange(self.items)
        keys = np.concatenate(
            [
                self._key(2 * genre + catalogue.content_type[item], item),
                self._key(2 * self.genres + genre, item),
                self._key(3 * self.genres, everything),
                self._key(3 * self.genres + 1 + catalogue.franchise, everything),
            ]
        )
        keys.sort()
        self.keys = keys
        weight = catalogue.weight[keys % self.items]
        weights = np.concatenate([weight, weight**rule.trending_exponent])
        self.cumulative = np.concatenate([[0.0], np.cumsum(weights)])
        cuts = np.arange(first_day, first_day + days)[:, None] - np.array([RECENT_DAYS, NEW_DAYS, 0])
        released = np.searchsorted(catalogue.release_day, cuts, side="right")
        self.released = np.concatenate([np.zeros((days, 1), np.int64), released], axis=1)

    def _key(self, pool: Any, item: Array) -> Array:
        key: Array = np.asarray(pool, np.int64) * self.items + item
        return key

    def find(self, pool_Q: Array, low_Q: Array, high_Q: Array, last_Q: Array) -> Array:
        """Positions (3, Q) of the pool's items low <= item < high: first, end, and that of `last` inside (or -1)."""
        first_Q, end_Q, at_Q = np.searchsorted(self.keys, pool_Q * self.items + np.stack((low_Q, high_Q, last_Q)))
        inside_Q = (last_Q >= low_Q) & (at_Q < end_Q)
        inside_Q &= self.keys[np.minimum(at_Q, len(self.keys) - 1)] == pool_Q * self.items + last_Q
        return np.stack((first_Q, end_Q, np.where(inside_Q, at_Q, -1)))

    def of_intent(self, states: States) -> Array:
        """Positions (3, Q), as `find` gives them, of the items that the intents allow; wider where there are none."""
        day_Q = states.day - self.first_day
        pool_Q = 2 * states.genre + states.content_type
        low_Q, high_Q = self.released[day_Q, 2 - states.age], self.released[day_Q, 3 - states.age]
        found = self.find(pool_Q, low_Q, high_Q, states.last)
        for wider in (pool_Q, 2 * self.genres + states.genre, np.full_like(pool_Q, 3 * self.genres)):
            rows = np.flatnonzero(~filled(found))
            if not rows.size:
                break
            released = self.released[day_Q[rows], 3]
            found[:, rows] = self.find(wider[rows], np.zeros_like(released), released, states.last[rows])
        return found

    def of_franchise(self, states: States) -> Array:
        """Positions (3, Q) of the released items of the last item's franchise but itself; an empty range without."""
        return self.beside(states.last, states.day)

    def beside(self, last_Q: Array, day_Q: Array) -> Array:
        """The same of the items `last_Q` (or -1) on the days `day_Q`."""
        pool_Q = 3 * self.genres + 1 + self.catalogue.franchise[last_Q]
        released_Q = np.where(last_Q >= 0, self.released[day_Q - self.first_day, 3], 0)
        return self.find(pool_Q, np.zeros_like(released_Q), released_Q, last_Q)

    def pick(self, found: Array, trending_Q: Array, uniform_Q: Array) -> Array:
        """The item at the fraction `uniform_Q` of the weight of each range, its last item left out."""
        shift_Q = trending_Q * len(self.keys)
        first_Q, end_Q, at_Q = found
        without_Q = np.where(at_Q >= 0, at_Q, end_Q) + shift_Q
        start_Q = self.cumulative[first_Q + shift_Q]
        cut_Q = self.cumulative[without_Q]
        gap_Q = np.where(at_Q >= 0, self.cumulative[without_Q + (at_Q >= 0)] - cut_Q, 0.0)
        target_Q = start_Q + uniform_Q * (self.cumulative[end_Q + shift_Q] - start_Q - gap_Q)
        target_Q += np.where(target_Q >= cut_Q, gap_Q, 0.0)
        position_Q = np.searchsorted(self.cumulative, target_Q, side="right") - 1 - shift_Q
        position_Q = np.clip(position_Q, first_Q, end_Q - 1)
        hit_Q = position_Q == at_Q  # rounding alone brings a draw to the item left out
        position_Q += np.where(hit_Q, np.where(at_Q + 1 < end_Q, 1, -1), 0)
        item: Array = self.keys[position_Q] % self.items
        return item

    def share(self, pool_found: Array, trending_Q: Array, item_Q: Array) -> Array:
        """The probability of `item_Q` in each range, its last item left out; 0 where it is not there."""
        shift_Q = trending_Q * len(self.keys)
        first_Q, end_Q, at_Q = pool_found
        pool_Q = self.keys[np.minimum(first_Q, len(self.keys) - 1)] // self.items
        position_Q = np.minimum(np.searchsorted(self.keys, pool_Q * self.items + item_Q), len(self.keys) - 1)
        inside_Q = (self.keys[position_Q] % self.items == item_Q) & (position_Q >= first_Q) & (position_Q < end_Q)
        exponent_Q = np.where(trending_Q, self.rule.trending_exponent, 1.0)
        total_Q = self.cumulative[end_Q + shift_Q] - self.cumulative[first_Q + shift_Q]
        left_out_Q = self.catalogue.weight[self.keys[at_Q] % self.items] ** exponent_Q
        total_Q -= np.where(at_Q >= 0, left_out_Q, 0.0)
        weight_Q = self.catalogue.weight[item_Q] ** exponent_Q
        return np.where(inside_Q & (position_Q != at_Q), weight_Q / np.where(total_Q > 0, total_Q, 1.0), 0.0)


def filled(found: Array) -> Array:
    """Whether (Q,) a range that `find` gives has any item but the last one."""
    first_Q, end_Q, at_Q = found
    found_Q: Array = end_Q - first_Q - (at_Q >= 0) > 0
    return found_Q


def keep_probability(rule: Rule, new_session_Q: Array, gap_days_Q: Array) -> Array:
    """The probability (Q,) that the intent of the event before, `gap_days_Q` days ago, is kept."""
    return np.where(new_session_Q, rule.carry * np.exp(-gap_days_Q / rule.carry_days), rule.stay)


def action_weights(preference_QA: Array, part_Q: Array, before_Q: Array) -> Array:
    """Weights (Q, A), not normalised, of a new intent's action; `before_Q` is the intent's action before or -1."""
    transitions = np.concatenate([ACTION_TRANSITIONS, np.ones((1, len(ACTIONS)))])
    weights: Array = preference_QA * PART_FACTORS[part_Q] * transitions[before_Q]
    return weights


def shown_action(states: States) -> Array:
    """The action (Q,) that the log shows: the intent's, or discover where there is nothing to go on with."""
    nothing_Q = (states.action == CONTINUE) & (states.begun[:, 0] < 0)
    nothing_Q |= (states.action == REWATCH) & (states.films[:, 0] < 0)
    return np.where(nothing_Q, DISCOVER, states.action)


def draw_items(pools: Pools, states: States, follow_Q: Array, pick_Q: Array) -> tuple[Array, Array]:
    """Items and shown actions, (Q,) each, for uniform numbers in [0, 1): one decides to follow, one picks the item."""
    action_Q = shown_action(states)
    item_Q = np.empty(len(action_Q), np.int64)
    for action, listed in ((CONTINUE, states.begun), (REWATCH, states.films)):
        rows = np.flatnonzero(action_Q == action)
        item_Q[rows] = _pick_recent(listed[rows], pools.rule.recency, pick_Q[rows])
    rows = np.flatnonzero((action_Q != CONTINUE) & (action_Q != REWATCH))
    asked, action_R = states.take(rows), action_Q[rows]
    found = pools.of_intent(asked)
    follow_R = np.flatnonzero(_may_follow(asked, action_R) & (follow_Q[rows] < pools.rule.follow))
    franchise = pools.of_franchise(asked.take(follow_R))
    some = filled(franchise)
    found[:, follow_R[some]] = franchise[:, some]
    item_Q[rows] = pools.pick(found, action_R == TRENDING, pick_Q[rows])
    return item_Q, action_Q


def item_probability(pools: Pools, states: States, item_Q: Array) -> Array:
    """The probability (Q,) that the next item is `item_Q`, given the states. Sums to 1 over all items."""
    action_Q = shown_action(states)
    probability_Q = np.zeros(len(action_Q))
    for action, listed in ((CONTINUE, states.begun), (REWATCH, states.films)):
        rows = np.flatnonzero(action_Q == action)
        shares = recent_shares(listed[rows], pools.rule.recency)
        probability_Q[rows] = (shares * (listed[rows] == item_Q[rows, None])).sum(axis=1)
    rows = np.flatnonzero((action_Q != CONTINUE) & (action_Q != REWATCH))
    asked, action_R, item_R = states.take(rows), action_Q[rows], item_Q[rows]
    trending_R = action_R == TRENDING
    franchise = pools.of_franchise(asked)
    follow_R = np.where(_may_follow(asked, action_R) & filled(franchise), pools.rule.follow, 0.0)
    share_R = pools.share(pools.of_intent(asked), trending_R, item_R)
    probability_Q[rows] = (1 - follow_R) * share_R + follow_R * pools.share(franchise, trending_R, item_R)
    return probability_Q


def _may_follow(states: States, action_Q: Array) -> Array:
    follows: Array = states.kept & (states.last >= 0) & ((action_Q == DISCOVER) | (action_Q == KIDS))
    return follows


def _pick_recent(listed_QB: Array, recency: float, uniform_Q: Array) -> Array:
    length_Q = (listed_QB >= 0).sum(axis=1)
    position_Q = np.log1p(-uniform_Q * (1 - recency**length_Q)) / np.log(recency)
    chosen_Q = np.clip(position_Q.astype(np.int64), 0, length_Q - 1)
    item: Array = listed_QB[np.arange(len(listed_QB)), chosen_Q]
    return item


def recent_shares(listed_QB: Array, recency: float) -> Array:
    """The probability (Q, B) of each item of a list; 0 where there is none."""
    weight_QB = recency ** np.arange(listed_QB.shape[1]) * (listed_QB >= 0)
    shares: Array = weight_QB / np.maximum(weight_QB.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return shares


class Memory:
    """What each of a number of users has begun and seen: the lists that continue_watching and rewatch draw from.

    An event of a series is one episode; the last one takes the series off the list. Replaying a log through
    `watch` gives the lists at each of its events.
    """

    def __init__(self, catalogue: Catalogue, rule: Rule, users: int) -> None:
        self.catalogue = catalogue
        self.begun = np.full((users, rule.begun_series), -1, np.int64)
        self.episodes_left = np.zeros((users, rule.begun_series), np.int64)
        self.films = np.full((users, rule.recent_films), -1, np.int64)

    def watch(self, item_Q: Array) -> None:
        """Take in the next item of the first Q users."""
        series_Q = self.catalogue.content_type[item_Q] == SERIES
        self._watch_series(np.flatnonzero(series_Q), item_Q[series_Q])
        rows, film = np.flatnonzero(~series_Q), item_Q[~series_Q]
        seen = self.films[rows] == film[:, None]
        self.films[rows] = _to_front(self.films[rows], film, _position(seen))

    def _watch_series(self, rows: Array, item: Array) -> None:
        known = self.begun[rows] == item[:, None]
        position = _position(known)
        left = np.where(known.any(axis=1), self.episodes_left[rows, position], self.catalogue.episodes[item]) - 1
        begun = _to_front(self.begun[rows], item, position)
        episodes_left = _to_front(self.episodes_left[rows], left, position)
        over = left <= 0
        for listed, none in ((begun, -1), (episodes_left, 0)):
            listed[over, :-1] = listed[over, 1:]
            listed[over, -1] = none
        self.begun[rows], self.episodes_left[rows] = begun, episodes_left


def _position(known_QB: Array) -> Array:
    """Where an item stands in its list, or the last place, which it will take."""
    return np.where(known_QB.any(axis=1), known_QB.argmax(axis=1), known_QB.shape[1] - 1)


def _to_front(listed_QB: Array, value_Q: Array, position_Q: Array) -> Array:
    shifted_QB = np.concatenate([value_Q[:, None], listed_QB[:, :-1]], axis=1)
    return np.where(np.arange(listed_QB.shape[1]) <= position_Q[:, None], shifted_QB, listed_QB)
