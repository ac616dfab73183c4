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
from ingest.sources.simulate_rule import ACTIONS, AGES, CONTENT_TYPES, GENRES, KIDS, Array
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

    def draws(self, odds_UBA: Array, ended: Ended | None) -> Draws:
        """What a new intent will be. `odds_UBA`: how much likelier an action is at this part of the day, after an
        action; `ended` is None where there was no intent before.
        """
        ...

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UBA: Array) -> None:
        """Take in the event of which `draws` was asked. `drawn_UBA`: the posterior probability of a new intent, by the
        action before and its own; `kept_U`: the joint probability of the event and of no new intent; `likelihood_UBA`:
        that of the event, a new intent and the action before, where the new intent has the action.
        """
        ...


class Known:
    """The users' true tastes."""

    def __init__(self, tastes: Tastes) -> None:
        self.tastes = tastes
        self.traits = traits_of(tastes.genres, tastes.content_types, tastes.ages)

    def draws(self, odds_UBA: Array, ended: Ended | None) -> Draws:
        users = len(odds_UBA)
        weight_UBA = self.tastes.actions[:users, None] * odds_UBA
        return Draws(weight_UBA / weight_UBA.sum(axis=2, keepdims=True), self.traits[:users])

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UBA: Array) -> None:
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

    def draws(self, odds_UBA: Array, ended: Ended | None) -> Draws:
        users = len(odds_UBA)
        self.odds_UBA, self.ended = odds_UBA, ended
        weight_UBA = (self.action[:users] / self.exposure[:users])[:, None] * odds_UBA  # of kids it is 0
        weight_UBA /= (self.action[:users] / self.exposure[:users]).sum(axis=1)[:, None, None]
        self.others_UB, kids_UB = weight_UBA.sum(axis=2), odds_UBA[:, :, KIDS]
        rates_U2 = self.children[:users] / self.children_exposure[:users]
        share_U1 = (rates_U2[:, 0] / rates_U2.sum(axis=1))[:, None]
        self.total_UB = share_U1 * kids_UB + (1 - share_U1) * self.others_UB
        self.without_UBA = weight_UBA / self.others_UB[:, :, None]
        self.with_UBA = weight_UBA * ((1 - share_U1) / self.total_UB)[:, :, None]
        self.with_UBA[:, :, KIDS] = share_U1 * kids_UB / self.total_UB
        action = self.without_UBA + self.household[:users, None, None] * (self.with_UBA - self.without_UBA)
        return Draws(action, _laid_over(self.traits[:users], None if ended is None else ended.traits))

    def learn(self, drawn_UBA: Array, kept_U: Array, likelihood_UBA: Array) -> None:
        users = len(kept_U)
        drawn_UB, kids_UB = drawn_UBA.sum(axis=2), drawn_UBA[:, :, KIDS]
        others_UB = drawn_UB - kids_UB
        self.action[:users] += drawn_UBA.sum(axis=1) * NOT_KIDS
        self.exposure[:users] += np.einsum("ub,uba->ua", others_UB / self.others_UB, self.odds_UBA)
        self.children[:users, 0] += kids_UB.sum(axis=1)
        self.children[:users, 1] += others_UB.sum(axis=1)
        drawn_UB /= self.total_UB
        self.children_exposure[:users, 0] += (drawn_UB * self.odds_UBA[:, :, KIDS]).sum(axis=1)
        self.children_exposure[:users, 1] += (drawn_UB * self.others_UB).sum(axis=1)

        share_U = self.household[:users]
        children_U = share_U * (kept_U + (self.with_UBA * likelihood_UBA).sum(axis=(1, 2)))
        none_U = (1 - share_U) * (kept_U + (self.without_UBA * likelihood_UBA).sum(axis=(1, 2)))
        self.household[:users] = children_U / np.maximum(children_U + none_U, TINY)
        if self.ended is not None:
            self._learn_traits(drawn_UBA, self.ended)

    def _learn_traits(self, drawn_UBA: Array, ended: Ended) -> None:
        """Count the intents that have ended."""
        before_UB = drawn_UBA.sum(axis=2)
        new_UT = np.repeat(before_UB.sum(axis=1, keepdims=True), 3, axis=1)
        new_UT[:, 0] -= before_UB[:, KIDS]  # whose genre is none of taste
        new_UT[:, 0] /= np.maximum(1 - ended.action[:, KIDS], TINY)
        absorb(self.traits[: len(new_UT)], ended.traits * new_UT[:, :, None])


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
