"""Markov of the last item: an item by how often it came right after it, the more popular first among equals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from evaluation.baselines.base import BaselineConfig, BaselineScorer
from ingest.arrays.jagged import offsets_of, ranges
from ingest.data.transitions import read_transitions
from ingest.features.feature import FIRST_VALUE
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.data.batch import Batch
    from trainer.recommender import Query

Transitions: TypeAlias = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Item, next item and how often, sorted by both, part by part."""


@register
class MarkovConfig(BaselineConfig):
    kind: Literal["markov"] = "markov"

    def scorer(self, data: Prepared) -> Markov:
        return Markov(data, read_transitions(data.url))


class Markov(BaselineScorer):
    """The transitions into this worker's items, v of them, by the item that they come from."""

    def __init__(self, data: Prepared, transitions: Transitions) -> None:
        import torch

        own = data.slice
        popularity_v = data.items.counts[own.rows.numpy()] / (data.items.counts.sum() + 1.0)
        self.popularity_v = torch.from_numpy(popularity_v).to(data.worker.device)
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for before, after, count in transitions:
            column = own.columns(torch.tensor(after)).numpy()
            kept = (before >= FIRST_VALUE) & (after >= FIRST_VALUE) & (column >= 0)
            parts.append(np.stack([before[kept], column[kept], count[kept]]).astype(np.int64))
        before, self.column, self.count = np.concatenate(parts, axis=1)
        self.offsets = offsets_of(np.bincount(before, minlength=data.manifest.catalogue))

    def query(self, batch: Batch) -> Query:
        return (batch.item_T[batch.target_position_Q],)

    def scores(self, query: Query) -> Tensor:
        import torch

        last = query[0].cpu().numpy()
        scores_Qv = self.popularity_v.repeat(len(last), 1)
        lengths = self.offsets[last + 1] - self.offsets[last]
        entries = ranges(self.offsets[last], lengths)
        row, column, count = (
            torch.from_numpy(values).to(scores_Qv.device)
            for values in (np.repeat(np.arange(len(last)), lengths), self.column[entries], self.count[entries])
        )
        scores_Qv[row, column] += count
        return scores_Qv
