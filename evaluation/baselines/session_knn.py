"""Nearest neighbours of the history: what those users' training rows have that have most in common with it.

Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI 2018 (arXiv 1803.09587): of the
newest rows that share an item with the history (a sample, so that the cost of a target is bounded), the most similar
ones give their similarity to each of their items. `weights: same`, `idf: false` and `cosine` make their S-KNN;
`weights: linear`, `idf: false` and `cosine: false`, V-SKNN. A row is a user's training events, also those of the
target's own user.

    Q  targets     L  items of a history     k  neighbours     R  training rows, the newest first
    N  rows that an item of a history is in     P  the same, each row once for each target
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from evaluation.baselines.base import BaselineConfig, BaselineScorer, OneOrMore, Positive, single
from ingest.arrays.jagged import cut, offsets_of, ranges
from ingest.features.feature import FIRST_VALUE
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from trainer.recommender import Query

ENTRIES_AT_ONCE = 2**22
"""Rows of items of histories that are looked at together."""
Floats = np.ndarray
Weights: TypeAlias = Literal["same", "linear", "div"]


@register
class SessionKnnConfig(BaselineConfig):
    kind: Literal["session_knn"] = "session_knn"
    neighbours: OneOrMore[Positive] = 100
    """The most similar rows, whose items are scored."""
    sample: OneOrMore[Positive] = 500
    """The newest rows that share an item with the history, of which the neighbours are taken."""
    length: OneOrMore[Positive] = 20
    """The history's newest items that are taken, each once."""
    weights: OneOrMore[Weights] = "linear"
    """Of the history's items, the newest first: all 1; n/n, (n-1)/n ... of n; or 1, 1/2, 1/3 ..."""
    idf: OneOrMore[bool] = True
    """Whether a common item counts by the logarithm of rows over rows that have it."""
    cosine: OneOrMore[bool] = True
    """Whether the similarity is divided by the root of the row's number of items."""

    def scorer(self, data: Prepared) -> SessionKnn:
        return SessionKnn(data, self)


class SessionKnn(BaselineScorer):
    """A query is the neighbours' rows and their similarities, padded with 0: two [Q, k]."""

    def __init__(self, data: Prepared, config: SessionKnnConfig) -> None:
        import torch

        from evaluation.baselines.sparse import SparseRows

        self.popularity_v, catalogue = data.popularity_v, data.manifest.catalogue
        self.neighbours, self.sample = single(config.neighbours), single(config.sample)
        self.length = single(config.length)
        self.weights: Weights = single(config.weights)
        found = data.incidence
        self.rows = found.rows
        column = data.slice.columns(torch.from_numpy(found.item_N)).numpy()
        own = column >= 0
        self.items_of_rows = SparseRows(found.row_N[own], column[own], np.ones(int(own.sum())), found.rows)
        self.row_N = found.row_N[np.argsort(found.item_N, kind="stable")].astype(np.int32)
        rows_V = np.bincount(found.item_N, minlength=catalogue)
        self.offsets_V = offsets_of(rows_V)
        self.importance_V = np.log(found.rows / np.maximum(rows_V, 1)) if single(config.idf) else np.ones(catalogue)
        lengths_R = np.bincount(found.row_N, minlength=found.rows)
        self.norm_R = np.sqrt(np.maximum(lengths_R, 1)) if single(config.cosine) else np.ones(found.rows)

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.baselines.history import History

        item_QL = History.of(batch).newest(self.length)
        entries_QL = self._entries(item_QL)
        bounds = pairwise(cut(entries_QL.sum(axis=1), ENTRIES_AT_ONCE))
        shape, device = (len(item_QL), self.neighbours), batch.item_T.device
        row_Qk, similarity_Qk = np.zeros(shape, np.int64), np.zeros(shape)
        for begin, end in bounds:
            row_Qk[begin:end], similarity_Qk[begin:end] = self._nearest(item_QL[begin:end], entries_QL[begin:end])
        return torch.from_numpy(row_Qk).to(device), torch.from_numpy(similarity_Qk).to(device)

    def _entries(self, item_QL: Integers) -> Integers:
        """How many of the newest rows of each item are looked at: [Q, L]."""
        rows_QL = self.offsets_V[item_QL + 1] - self.offsets_V[item_QL]
        return np.minimum(rows_QL, self.sample) * (item_QL >= FIRST_VALUE)

    def _nearest(self, item_QL: Integers, entries_QL: Integers) -> tuple[Integers, Floats]:
        """The most similar rows and their similarities, of equal ones the newer first: two [Q, k]."""
        from evaluation.baselines.history import padded, places

        queries, lengths = item_QL.shape[0], entries_QL.ravel()
        row_N = self.row_N[ranges(self.offsets_V[item_QL].ravel(), lengths)]
        weight_QL = self._weights(item_QL) * self.importance_V[item_QL]
        query_N = np.repeat(np.repeat(np.arange(queries), item_QL.shape[1]), lengths)
        # the rows of a target ascend, the newest first: no row of the sample lies beyond an item's own newest ones
        key_P, inverse_N = np.unique(query_N * self.rows + row_N, return_inverse=True)
        overlap_P = np.bincount(inverse_N, np.repeat(weight_QL.ravel(), lengths), len(key_P))
        query_P, row_P = np.divmod(key_P, max(self.rows, 1))
        sampled = places(query_P, queries) < self.sample
        query_P, row_P, similarity_P = query_P[sampled], row_P[sampled], (overlap_P / self.norm_R[row_P])[sampled]
        order = np.lexsort((row_P, -similarity_P, query_P))
        row_Qk = padded(query_P[order], row_P[order], queries, self.neighbours)
        return row_Qk, padded(query_P[order], similarity_P[order], queries, self.neighbours)

    def _weights(self, item_QL: Integers) -> Floats:
        """Of the places of each history: [Q, L]."""
        count_Q1 = (item_QL >= FIRST_VALUE).sum(axis=1, keepdims=True)
        place_L = np.arange(item_QL.shape[1])
        if self.weights == "linear":
            return (count_Q1 - place_L) / np.maximum(count_Q1, 1)
        weight_L = 1.0 / (place_L + 1.0) if self.weights == "div" else np.ones(len(place_L))
        return np.broadcast_to(weight_L, item_QL.shape)

    def scores(self, query: Query) -> Tensor:
        from evaluation.baselines.sparse import or_popular

        row_Qk, similarity_Qk = query
        scores_Qv = self.popularity_v.new_zeros(len(row_Qk), len(self.popularity_v))
        self.items_of_rows.add(scores_Qv, row_Qk, similarity_Qk)
        return or_popular(scores_Qv, self.popularity_v)
