"""The rule of the made log for all intents at once: a cell is a genre, a content type and an age.

`simulate_rule.item_probability` answers for one intent; a filter needs every cell of every event, so what a pool holds
on each day is tabulated, and an answer is a few operations on arrays. Memory: 96 cells x 3 numbers a day, and 96 x the
states asked at once.

Shapes: Q states, G genres, C content types, K ages, D days, N items, B begun series, F films. Axes G, C, K together are
the cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingest.sources.simulate_rule import AGES, CONTENT_TYPES, Array, Pools, filled

KINDS = 2
"""Of draws from a pool: with the items' weights (0), or with the weights raised to the trending exponent (1)."""


@dataclass(frozen=True)
class Resolved:
    """Which pool each cell draws from: its own (0), that of any age (1), any type (2) or all items (3); its weight."""

    level: Array  # (Q, G, C, K)
    total: Array  # (Q, G, C, K)


class Cells:
    """What the pools of all cells hold on each day of the log."""

    def __init__(self, pools: Pools) -> None:
        self.pools, self.released, self.recency = pools, pools.released, pools.rule.recency
        catalogue = pools.catalogue
        self.genres = catalogue.genres
        self.types = catalogue.content_type[:, None] == np.arange(len(CONTENT_TYPES))
        self.weight = np.stack([catalogue.weight, catalogue.weight**pools.rule.trending_exponent])
        days, genres = len(self.released), pools.genres
        pool_GC = 2 * np.arange(genres)[:, None] + np.arange(len(CONTENT_TYPES))
        low_DK, high_DK = (self.released[:, [place - age for age in range(len(AGES))]] for place in (2, 3))
        cells = days, genres, len(CONTENT_TYPES), len(AGES)
        everything = np.zeros(days, np.int64), self.released[:, 3]
        self.holds = [
            self._held(*np.broadcast_arrays(pool_GC[:, :, None], low_DK[:, None, None], high_DK[:, None, None])),
            self._held(*np.broadcast_arrays(pool_GC, *(cut[:, None, None] for cut in everything))),
            self._held(*np.broadcast_arrays(2 * genres + np.arange(genres), *(cut[:, None] for cut in everything))),
            self._held(np.full(days, 3 * genres), *everything),
        ]
        assert self.holds[0][0].shape == cells

    def _held(self, pool: Array, low: Array, high: Array) -> tuple[Array, Array]:
        """How many items each range of a pool has, and their weights, of both kinds: (...), (KINDS, ...)."""
        nothing = np.full(pool.size, -1)
        first, end, _ = self.pools.find(pool.ravel(), low.ravel(), high.ravel(), nothing)
        shift = len(self.pools.keys) * np.arange(KINDS)[:, None]
        total = self.pools.cumulative[end + shift] - self.pools.cumulative[first + shift]
        return (end - first).reshape(pool.shape), total.reshape(KINDS, *pool.shape)

    def ages(self, day_Q: Array, item_Q: Array) -> Array:
        """Whether (Q, K) an item has each age on the day; none where it is not released, or -1."""
        evergreen_Q, recent_Q, released_Q = self.released[day_Q, 1:4].T
        is_new, is_old = (item_Q >= recent_Q) & (item_Q < released_Q), (item_Q >= 0) & (item_Q < evergreen_Q)
        return np.stack([is_new, (item_Q >= evergreen_Q) & (item_Q < recent_Q), is_old], axis=1)

    def _inside(self, day_Q: Array, item_Q: Array) -> list[Array]:
        """Whether an item is in the pool of each cell, level by level; of the shapes of `holds`, with Q for D."""
        is_QK = self.ages(day_Q, item_Q)
        released_Q = np.asarray(is_QK.any(axis=1))
        genre_QG, type_QC = self.genres[item_Q] & released_Q[:, None], self.types[item_Q]
        own_QGC = genre_QG[:, :, None] & type_QC[:, None]
        return [own_QGC[..., None] & is_QK[:, None, None], own_QGC, genre_QG, released_Q]

    def resolve(self, day_Q: Array, last_Q: Array, kind_Q: Array) -> Resolved:
        """The pools that intents of all cells draw from, the last item (or -1) left out. Days are the log's, from 0."""
        weight_Q = self.weight[kind_Q, last_Q]
        shape = (len(day_Q), *self.holds[0][0].shape[1:])
        level, total = np.full(shape, 3, np.int8), np.empty(shape)
        for number, inside in reversed(list(enumerate(self._inside(day_Q, last_Q)))):
            count, weights = self.holds[number]
            axes = (..., *[None] * (4 - inside.ndim))
            some: Array = count[day_Q] > inside
            held = (weights[kind_Q, day_Q] - inside * weight_Q.reshape(-1, *[1] * (inside.ndim - 1)))[axes]
            if number == 3:
                total[:] = held
            else:
                level, total = np.where(some[axes], np.int8(number), level), np.where(some[axes], held, total)
        return Resolved(level, total)

    def share(self, day_Q: Array, last_Q: Array, kind_Q: Array, item_Q: Array) -> Array:
        """The probability (Q, G, C, K) that an intent of each cell, drawn from its pool, gives the item."""
        resolved = self.resolve(day_Q, last_Q, kind_Q)
        own, any_age, any_type, everything = self._inside(day_Q, item_Q)
        levels = [own, any_age[..., None], any_type[..., None, None], everything[:, None, None, None]]
        inside = np.choose(resolved.level, np.broadcast_arrays(*levels))
        weight_Q = np.where(item_Q == last_Q, 0.0, self.weight[kind_Q, item_Q])
        share: Array = inside * weight_Q[:, None, None, None] / resolved.total
        return share

    def spread(self, day_Q: Array, last_Q: Array, kind: int, mass: Array) -> tuple[Array, Array]:
        """How much each unit of an item's weight gets where the cells' probabilities are `mass`, (Q, G, C, K) each.

        First for every genre that the item has, by its type and age: (Q, G, C, K). Then for all items: (Q,).
        """
        resolved = self.resolve(day_Q, last_Q, np.full(len(day_Q), kind))
        unit, level = mass / resolved.total, resolved.level
        by_cell = unit * (level == 0)
        by_cell += (unit * (level == 1)).sum(axis=3, keepdims=True)
        by_cell += (unit * (level == 2)).sum(axis=(2, 3), keepdims=True)
        return by_cell, (unit * (level == 3)).sum(axis=(1, 2, 3))

    def follows(self, day_Q: Array, last_Q: Array) -> tuple[Array, Array]:
        """The share of kept intents that follow the last item's franchise, and the weight of those that it leads to."""
        found = self.pools.beside(last_Q, day_Q + self.pools.first_day)
        first_Q, end_Q, at_Q = found
        total_Q = self.pools.cumulative[end_Q] - self.pools.cumulative[first_Q]
        total_Q -= np.where(at_Q >= 0, self.weight[0, last_Q], 0.0)
        some = filled(found) & (last_Q >= 0)
        return np.where(some, self.pools.rule.follow, 0.0), np.where(some, total_Q, 1.0)

    def next_in_franchise(self, day_Q: Array, last_Q: Array, item_Q: Array) -> tuple[Array, Array]:
        """The share of kept intents that follow, and the probability that one which does gives the item: (Q,) each."""
        follow_Q, total_Q = self.follows(day_Q, last_Q)
        franchise = self.pools.catalogue.franchise
        inside = (franchise[item_Q] == franchise[last_Q]) & (item_Q != last_Q)
        return follow_Q, np.where(inside & (follow_Q > 0), self.weight[0, item_Q] / total_Q, 0.0)
