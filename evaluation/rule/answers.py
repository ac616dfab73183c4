"""From what is known of the next intent to the probability of every item, and what of it travels to the workers.

Shapes: Q targets, A actions, G genres, C content types, K ages, L items of the two lists, v items of a worker's slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.rule.cells import KINDS, Cells
from evaluation.rule.filter import INTENT, Outlook, Requests
from ingest.sources.simulate_rule import CONTINUE, DISCOVER, FILM, KIDS, REWATCH, SERIES, TRENDING, Array, recent_shares


@dataclass(frozen=True)
class Answers:
    """What the items' probabilities are sums of, for Q targets.

    Of each kind of draw (cells.KINDS, second axis) what a unit of an item's weight gets for each of its genres, by type
    and age, and whatever it is; what it gets in the franchise of the last item; and items with their own probability.
    """

    cells: Array  # (Q, KINDS, G, C, K)
    anything: Array  # (Q, KINDS)
    franchise: Array  # (Q,)
    listed: Array  # (Q, L) items, or -1
    probability: Array  # (Q, L)
    day: Array  # (Q,)
    last: Array  # (Q,)

    @classmethod
    def none(cls, cells: Cells) -> Answers:
        """Those of no targets."""
        kinds, rule = (0, KINDS), cells.pools.rule
        lists = 0, rule.begun_series + rule.recent_films
        whole = np.empty(0, np.int64)
        floats = np.empty((*kinds, *INTENT[1:])), np.empty(kinds), np.empty(0)
        return cls(*floats, np.empty(lists, np.int64), np.empty(lists), whole, whole)


def answers(cells: Cells, requests: Requests, outlook: Outlook) -> Answers:
    """Sum over the intents."""
    kept, new = outlook.kept, outlook.new
    actions_QA = (kept + new).sum(axis=(2, 3, 4))
    shares, nothing = [], requests.nothing()
    discovers = [[intents[:, action] for action in (DISCOVER, KIDS)] for intents in (kept, new)]
    for action, listed, without in zip((CONTINUE, REWATCH), (requests.begun, requests.films), nothing, strict=True):
        shares.append(np.where(without, 0.0, actions_QA[:, action])[:, None] * recent_shares(listed, cells.recency))
        for found, intents in zip(discovers, (kept, new), strict=True):
            found.append(intents[:, action] * without[:, None, None, None])
    kept_QGCK, new_QGCK = (np.sum(found, axis=0) for found in discovers)
    follow_Q, weight_Q = cells.follows(requests.day, requests.last)
    masses = [
        new_QGCK + (1 - follow_Q)[:, None, None, None] * kept_QGCK,
        kept[:, TRENDING] + new[:, TRENDING],
    ]
    spread = [cells.spread(requests.day, requests.last, kind, mass) for kind, mass in enumerate(masses)]
    return Answers(
        cells=np.stack([by_cell for by_cell, _ in spread], axis=1),
        anything=np.stack([anything for _, anything in spread], axis=1),
        franchise=follow_Q * kept_QGCK.sum(axis=(1, 2, 3)) / weight_Q,
        listed=np.concatenate([requests.begun, requests.films], axis=1),
        probability=np.concatenate(shares, axis=1),
        day=requests.day,
        last=requests.last,
    )


class Slice:
    """Probabilities of some of the catalogue's items, `item_v`; -1 stands for none, which has the probability 0."""

    def __init__(self, cells: Cells, item_v: Array) -> None:
        self.cells, self.item_v = cells, item_v
        catalogue = cells.pools.catalogue
        there_v = item_v >= 0
        self.weight = cells.weight[:, item_v] * there_v
        self.franchise_v = np.where(there_v, catalogue.franchise[item_v], -1)
        self.columns = [
            np.flatnonzero(there_v & (catalogue.content_type[item_v] == content_type))
            for content_type in (FILM, SERIES)
        ]
        self.genres = [cells.genres[item_v[column]].T.astype(float) for column in self.columns]

    def probability(self, found: Answers) -> Array:
        """Of every item, (Q, v), without what the lists add."""
        probability = np.zeros((len(found.day), len(self.item_v)))
        evergreen_Q1, recent_Q1, released_Q1 = self.cells.released[found.day, 1:4].T[:, :, None]
        for content_type, (column, genres) in enumerate(zip(self.columns, self.genres, strict=True)):
            item = self.item_v[column]
            is_age = (
                (item >= recent_Q1) & (item < released_Q1),
                (item >= evergreen_Q1) & (item < recent_Q1),
                item < evergreen_Q1,
            )
            for age, inside in enumerate(is_age):
                for kind, weight in enumerate(self.weight):
                    unit = found.cells[:, kind, :, content_type, age] @ genres + found.anything[:, kind, None]
                    probability[:, column] += inside * unit * weight[column]
        next_Qv = self.franchise_v == self.cells.pools.catalogue.franchise[found.last][:, None]
        next_Qv &= self.item_v < released_Q1
        probability += next_Qv * (found.franchise[:, None] * self.weight[0])
        probability[self.item_v == found.last[:, None]] = 0
        return probability
