"""What a filter takes a user to like: the true tastes, or an estimate from the events so far.

An estimate is a Dirichlet distribution for genres, content types, ages and actions, which begins as the prior that
users are drawn from (`simulate_world.make_users`). What a new intent was is known only in probability, so the posterior
is a mixture; it is replaced by the one Dirichlet that has its mean and its total variance (assumed-density filtering).
A new intent counts when it ends: all that was seen of it has said by then which genre, type and age it had, and until
then its own distribution is laid over the estimate. Actions are drawn with odds that change with the part of the day
and the action before: a draw counts 1 for its action, and for every action as much exposure as the odds gave it.
Whether a household has children at all is a probability of its own.

Shapes: U users, A actions (B: before), G genres, C content types, K ages; T traits of an intent (genre, content type
and age), each with its labels, padded by zeros to the number of genres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ingest.sources import simulate_world as world
from ingest.sources.simulate_rule import ACTIONS, AGES, CONTENT_TYPES, GENRES, KIDS, Array, action_weights
from ingest.sources.simulate_truth import Tastes
from ingest.sources.simulate_world import UserSettings

TINY = 1e-300
NOT_KIDS = np.arange(len(ACTIONS)) != KIDS


@dataclass(frozen=True)
class Draws:
    """What a new intent will be: its action by the action before, and its traits; for kids the genre is another."""

    action: Array  # (U, B, A)
    traits: Array  # (U, T, G)


@dataclass(frozen=True)
class Ended:
    """The intent that a new one would replace: probabilities. Of the genre together with not being kids."""

    action: Array  # (U, A)
    traits: Array  # (U, T, G)


def traits_of(genre_UG: Array, content_type_UC: Array, age_UK: Array) -> Array:
    """The traits (U, T, G) in one array."""
    traits = np.zeros((len(genre_UG), 3, len(GENRES)))
    for place, trait in enumerate((genre_UG, content_type_UC, age_UK)):
        traits[:, place, : trait.shape[1]] = trait
    return traits


def parts_of(traits_UTG: Array) -> tuple[Array, Array, Array]:
    """Genre (U, G), content type (U, C) and age (U, K) of an array of traits."""
    return traits_UTG[:, 0], traits_UTG[:, 1, : len(CONTENT_TYPES)], traits_UTG[:, 2, : len(AGES)]


class Belief(Protocol):
    """What is known of users, the first of whom go on: their number is that of the arrays given."""

    def draws(self, part_U: Array, ended: Ended | None) -> Draws:
        """What a new intent will be at a part of the day; `ended` is None where there was no intent before."""
        ...

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UA: Array, ended: Ended | None) -> None:
        """Take in an event, after `draws`. `drawn_UBA`: the posterior probability of a new intent, by the action before
        and its own; `kept_U`: the joint probability of the event and of no new intent; `likelihood_UA`: the
        probability of the event where a new intent has the action, times that there is a new one.
        """
        ...


class Known:
    """The users' true tastes."""

    def __init__(self, tastes: Tastes) -> None:
        self.tastes = tastes
        self.traits = traits_of(tastes.genres, tastes.content_types, tastes.ages)

    def draws(self, part_U: Array, ended: Ended | None) -> Draws:
        users = len(part_U)
        return Draws(_actions(self.tastes.actions[:users], part_U, ended), self.traits[:users])

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UA: Array, ended: Ended | None) -> None:
        pass


class Learned:
    """Tastes as the events so far tell them, from the prior on."""

    def __init__(self, users: int, settings: UserSettings) -> None:
        def each(values: Array) -> Array:
            return np.tile(values, (users, 1))

        series, film = world.SERIES_SHARE
        self.traits = traits_of(
            each(settings.taste_concentration * world.GENRE_SHARES),
            each(np.array([film, series])),
            each(world.AGE_CONCENTRATION * world.AGE_SHARES),
        )
        self.action = each(world.ACTION_CONCENTRATION * world.ACTION_SHARES)  # without kids
        self.exposure = each(np.full(len(ACTIONS), world.ACTION_CONCENTRATION))
        self.children = each(np.array(world.CHILDREN))  # kids, others; in a household with children
        self.children_exposure = each(np.full(2, sum(world.CHILDREN)))
        self.household = np.full(users, settings.kids_households)

    def draws(self, part_U: Array, ended: Ended | None) -> Draws:
        users = len(part_U)
        self.with_UBA = _actions(self._preferences(users, True), part_U, ended)
        self.without_UBA = _actions(self._preferences(users, False), part_U, ended)
        self.part_U = part_U
        share_U11 = self.household[:users, None, None]
        action = share_U11 * self.with_UBA + (1 - share_U11) * self.without_UBA
        return Draws(action, _laid_over(self.traits[:users], None if ended is None else ended.traits))

    def _preferences(self, users: int, children: bool) -> Array:
        """The shares (U, A) of the actions, with or without children in the household."""
        others = self.action[:users] / self.exposure[:users]
        others /= others.sum(axis=1, keepdims=True)
        if children:
            kids, not_kids = (self.children[:users] / self.children_exposure[:users]).T
            share_U = kids / (kids + not_kids)
            others *= (1 - share_U)[:, None]
            others[:, KIDS] = share_U
        return others

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UA: Array, ended: Ended | None) -> None:
        users, before_UB = len(kept_U), drawn_UBA.sum(axis=2)
        self._learn_actions(drawn_UBA, ended)
        prior_UB = np.full_like(before_UB, 1 / before_UB.shape[1]) if ended is None else ended.action
        joint = [kept_U + np.einsum("ub,uba,ua->u", prior_UB, action_UBA, likelihood_UA)
                 for action_UBA in (self.with_UBA, self.without_UBA)]  # fmt: skip
        share_U = self.household[:users]
        self.household[:users] = share_U * joint[0] / np.maximum(share_U * joint[0] + (1 - share_U) * joint[1], TINY)
        if ended is None:
            return
        new_UT = np.repeat(before_UB.sum(axis=1, keepdims=True), 3, axis=1)
        new_UT[:, 0] -= before_UB[:, KIDS]  # whose genre is none of taste
        new_UT[:, 0] /= np.maximum(1 - ended.action[:, KIDS], TINY)
        absorb(self.traits[:users], ended.traits * new_UT[:, :, None])

    def _learn_actions(self, drawn_UBA: Array, ended: Ended | None) -> None:
        """Count the draws, and what each action was exposed to."""
        users = len(drawn_UBA)
        odds_UBA = action_weights(np.ones((users, 1, len(ACTIONS))), self.part_U[:, None], _before(ended))
        share_UA = self._preferences(users, False)
        weight_UBA = share_UA[:, None] * odds_UBA
        others_UB = weight_UBA.sum(axis=2)  # of kids there is none
        drawn_UB, kids_UB = drawn_UBA.sum(axis=2), drawn_UBA[:, :, KIDS]
        self.action[:users] += drawn_UBA.sum(axis=1) * NOT_KIDS
        self.exposure[:users] += np.einsum("ub,uba->ua", (drawn_UB - kids_UB) / others_UB, odds_UBA)
        kids, not_kids = (self.children[:users] / self.children_exposure[:users]).T
        share_U1 = (kids / (kids + not_kids))[:, None]
        total_UB = share_U1 * odds_UBA[:, :, KIDS] + (1 - share_U1) * others_UB
        self.children[:users] += np.stack([kids_UB.sum(axis=1), (drawn_UB - kids_UB).sum(axis=1)], axis=1)
        exposed = [(drawn_UB / total_UB * odds).sum(axis=1) for odds in (odds_UBA[:, :, KIDS], others_UB)]
        self.children_exposure[:users] += np.stack(exposed, axis=1)


def _before(ended: Ended | None) -> Array:
    """The actions before, (1, B), or none."""
    return np.full((1, len(ACTIONS)), -1) if ended is None else np.arange(len(ACTIONS))[None]


def _actions(preference_UA: Array, part_U: Array, ended: Ended | None) -> Array:
    """The probability (U, B, A) of a new intent's action by the action before."""
    weights = action_weights(preference_UA[:, None], part_U[:, None], _before(ended))
    probability: Array = weights / weights.sum(axis=2, keepdims=True)
    return probability


def _laid_over(alpha_UTG: Array, ended_UTG: Array | None) -> Array:
    """The mean of Dirichlets after one more draw, distributed as `ended_UTG`, which may sum to less than 1."""
    total_UT1 = alpha_UTG.sum(axis=2, keepdims=True)
    if ended_UTG is None:
        return alpha_UTG / total_UT1
    some_UT1 = ended_UTG.sum(axis=2, keepdims=True)
    mean: Array = (1 - some_UT1) * alpha_UTG / total_UT1 + (some_UT1 * alpha_UTG + ended_UTG) / (total_UT1 + 1)
    return mean


def absorb(alpha_UTG: Array, weight_UTG: Array) -> None:
    """Make `alpha_UTG` the Dirichlets nearest to the mixtures that have `weight_UTG` of one more count, and else none.

    They have the mixtures' means and the sums of their variances.
    """
    total_UT1, some_UT1 = alpha_UTG.sum(axis=2, keepdims=True), weight_UTG.sum(axis=2, keepdims=True)
    mean = _laid_over(alpha_UTG, weight_UTG)
    square = (1 - some_UT1) * alpha_UTG * (alpha_UTG + 1) / (total_UT1 * (total_UT1 + 1))
    square += (some_UT1 * alpha_UTG + 2 * weight_UTG) * (alpha_UTG + 1) / ((total_UT1 + 1) * (total_UT1 + 2))
    variance_UT1 = np.maximum((square - mean**2).sum(axis=2, keepdims=True), TINY)
    alpha_UTG[:] = mean * np.maximum((mean * (1 - mean)).sum(axis=2, keepdims=True) / variance_UT1 - 1, TINY)
