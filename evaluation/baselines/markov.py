"""Markov of the last item: an item by how often it came right after it, the more popular first among equals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from evaluation.baselines.base import BaselineConfig, BaselineScorer, OneOrMore, single
from ingest.data.transitions import read_transitions
from ingest.features.feature import FIRST_VALUE
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.data.batch import Batch
    from trainer.recommender import Query

Transitions: TypeAlias = Iterable[tuple[np.ndarray, ...]]
"""Item, next item and how often, sorted by both, part by part."""


@register
class MarkovConfig(BaselineConfig):
    kind: Literal["markov"] = "markov"
    repeats: OneOrMore[bool] = True
    """Whether items that the user had before are scored as all others, or below them."""

    def scorer(self, data: Prepared) -> Markov:
        return Markov(data, read_transitions(data.url), single(self.repeats))


class Markov(BaselineScorer):
    """The transitions into this worker's items, v of them, by the item that they come from."""

    def __init__(self, data: Prepared, transitions: Transitions, repeats: bool = True) -> None:
        import torch

        from evaluation.baselines.sparse import SparseRows

        self.slice, self.repeats, self.popularity_v = data.slice, repeats, data.popularity_v
        self.above_all = float(data.items.counts.sum()) + 2.0
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for before, after, count in transitions:
            column = self.slice.columns(torch.tensor(after)).numpy()
            kept = (before >= FIRST_VALUE) & (after >= FIRST_VALUE) & (column >= 0)
            parts.append(np.stack([before[kept], column[kept], count[kept]]).astype(np.int64))
        before, column, count = np.concatenate(parts, axis=1)
        self.transitions = SparseRows(before, column, count.astype(np.float64), data.manifest.catalogue)

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.baselines.history import History

        last_Q = batch.item_T[batch.target_position_Q]
        if self.repeats:
            return (last_Q,)
        return last_Q, torch.from_numpy(History.of(batch).newest(None)).to(last_Q.device)

    def scores(self, query: Query) -> Tensor:
        last_Q1 = query[0][:, None]
        scores_Qv = self.popularity_v.repeat(len(last_Q1), 1)
        self.transitions.add(scores_Qv, last_Q1, last_Q1.new_ones(last_Q1.shape))
        if not self.repeats:
            query_N, _, column_N = self.slice.entries(query[1])
            scores_Qv[query_N, column_N] -= self.above_all
        return scores_Qv
