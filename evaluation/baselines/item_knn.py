"""Item-based nearest neighbours: items that the same users have as those that the user had last.

Sarwar, Karypis, Konstan and Riedl, "Item-based collaborative filtering recommendation algorithms", WWW 2001; with
shrinkage and the neighbours of each item that is recommended, as in the baselines of Ferrari Dacrema, Cremonesi and
Jannach, "Are we really making much progress?", RecSys 2019 (arXiv 1907.06902).

    P  pairs of an item of this worker's slice and another item that a user has, too
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from evaluation.baselines.base import BaselineConfig, BaselineScorer, OneOrMore, Positive, single
from ingest.arrays.jagged import cut, offsets_of, ranges
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from evaluation.baselines.incidence import Incidence
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from trainer.recommender import Query

PAIRS_AT_ONCE = 2**19
"""Pairs of items that are counted together."""
Floats = np.ndarray


@register
class ItemKnnConfig(BaselineConfig):
    kind: Literal["item_knn"] = "item_knn"
    neighbours: OneOrMore[Positive] = 100
    """How many of the most similar items an item keeps."""
    shrink: OneOrMore[Annotated[float, Field(ge=0)]] = 0.0
    """Added to the cosine's denominator, so that few common users count less."""
    counted: OneOrMore[bool] = False
    """Whether a user who has an item several times counts as often."""
    length: OneOrMore[Positive] = 50
    """The user's newest items that are taken, each once."""
    decay: OneOrMore[Annotated[float, Field(gt=0, le=1)]] = 1.0
    """The weight of each of them over that of the next newer one."""

    def scorer(self, data: Prepared) -> ItemKnn:
        return ItemKnn(data, self)


class ItemKnn(BaselineScorer):
    """The similarities of this worker's items, v of them, to their neighbours. A query is the user's items: [Q, L]."""

    def __init__(self, data: Prepared, config: ItemKnnConfig) -> None:
        from evaluation.baselines.sparse import SparseRows

        self.popularity_v = data.popularity_v
        self.length, self.decay = single(config.length), single(config.decay)
        similar = Similarities(data, data.incidence, single(config.counted), single(config.shrink))
        neighbours = similar.neighbours(single(config.neighbours))
        self.similarity = SparseRows(*neighbours, data.manifest.catalogue)

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.baselines.history import History

        return (torch.from_numpy(History.of(batch).newest(self.length)).to(batch.item_T.device),)

    def scores(self, query: Query) -> Tensor:
        from evaluation.baselines.history import place_weights
        from evaluation.baselines.sparse import or_popular

        (item_QL,) = query
        scores_Qv = self.popularity_v.new_zeros(len(item_QL), len(self.popularity_v))
        self.similarity.add(scores_Qv, item_QL, place_weights(item_QL, self.decay))
        return or_popular(scores_Qv, self.popularity_v)


class Similarities:
    """The cosine of each of this worker's items with all items, over training rows."""

    def __init__(self, data: Prepared, incidence: Incidence, counted: bool, shrink: float) -> None:
        import torch

        self.catalogue, self.shrink, self.item_N = data.manifest.catalogue, shrink, incidence.item_N
        self.weight_N = incidence.count_N.astype(np.float64) if counted else np.ones(len(self.item_N))
        self.norm_V = np.sqrt(np.bincount(self.item_N, self.weight_N**2, self.catalogue))
        self.lengths_R = np.bincount(incidence.row_N, minlength=incidence.rows)
        self.begin_R = offsets_of(self.lengths_R)[:-1]
        self.item_v = data.slice.rows.numpy()
        column_N = data.slice.columns(torch.from_numpy(self.item_N)).numpy()
        # the rows that each of the own items is in: M entries, columns ascending
        own_M = np.flatnonzero(column_N >= 0)
        own_M = own_M[np.argsort(column_N[own_M], kind="stable")]
        self.column_M, self.row_M, self.own_weight_M = column_N[own_M], incidence.row_N[own_M], self.weight_N[own_M]
        self.offsets_v = offsets_of(np.bincount(self.column_M, minlength=len(self.item_v)))

    def neighbours(self, most: int) -> tuple[Integers, Integers, Floats]:
        """Item, column and similarity of the `most` items that are most similar to each column's: three [P].

        Of equal ones the item of the lower index, which is the more popular one, comes first.
        """
        from evaluation.baselines.history import places

        pairs_M = self.lengths_R[self.row_M]
        pairs_v = np.bincount(self.column_M, pairs_M, len(self.item_v)).astype(np.int64)
        found: list[tuple[Integers, Integers, Floats]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for first, last in pairwise(cut(pairs_v, PAIRS_AT_ONCE)):
            column_P, item_P, dot_P = self._products(first, last)
            norms_P = self.norm_V[self.item_v[column_P]] * self.norm_V[item_P]
            similarity_P = dot_P / (norms_P + self.shrink)
            other = np.flatnonzero(item_P != self.item_v[column_P])  # ascending by column, then by item
            order = other[np.lexsort((-similarity_P[other], column_P[other]))]
            order = order[places(column_P[order], len(self.item_v)) < most]
            found.append((item_P[order], column_P[order], similarity_P[order]))
        item_P, column_P, similarity_P = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return item_P, column_P, similarity_P

    def _products(self, first: int, last: int) -> tuple[Integers, Integers, Floats]:
        """Column, item and dot product of the pairs of the columns from `first` to before `last`: three [P]."""
        entries = slice(int(self.offsets_v[first]), int(self.offsets_v[last]))
        key_P, dot_P = np.zeros(0, np.int64), np.zeros(0)
        for begin, end in pairwise(cut(self.lengths_R[self.row_M[entries]], PAIRS_AT_ONCE) + entries.start):
            row_M, lengths_M = self.row_M[begin:end], self.lengths_R[self.row_M[begin:end]]
            pairs = ranges(self.begin_R[row_M], lengths_M)
            key = np.repeat((self.column_M[begin:end] - first) * self.catalogue, lengths_M) + self.item_N[pairs]
            weight = np.repeat(self.own_weight_M[begin:end], lengths_M) * self.weight_N[pairs]
            key, weight = np.concatenate([key_P, key]), np.concatenate([dot_P, weight])
            key_P, dot_P = summed(key, weight, (last - first) * self.catalogue)
        column_P, item_P = np.divmod(key_P, self.catalogue)
        return column_P + first, item_P, dot_P


def summed(key_N: Integers, value_N: Floats, size: int) -> tuple[Integers, Floats]:
    """The different keys, which are below `size`, and the sum of the positive values of each."""
    if size <= 4 * len(key_N):
        sums = np.bincount(key_N, value_N, size)
        key = np.flatnonzero(sums)
        return key, sums[key]
    key, inverse = np.unique(key_N, return_inverse=True)
    return key, np.bincount(inverse, value_N, len(key))
