"""The user's own items again, the newest or the most frequent first, and then all others by popularity.

Known as P-Pop and as the recency-weighted counts of repeat consumption: Anderson, Kumar, Tomkins and Vassilvitskii,
"The Dynamics of Repeat Consumption", WWW 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field

from evaluation.baselines.base import BaselineConfig, ListedScorer, OneOrMore, Positive, single
from trainer.models.registry import register

if TYPE_CHECKING:
    from evaluation.baselines.base import Prepared
    from evaluation.baselines.history import History
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from trainer.recommender import Query

Order: TypeAlias = Literal["recency", "frequency", "decay"]


@register
class RecentConfig(BaselineConfig):
    kind: Literal["recent"] = "recent"
    order: OneOrMore[Order] = "recency"
    """By the newest occurrence, by their number, or by a sum over them in which older ones count less. Of equal ones
    the newer item comes first."""
    half_life: OneOrMore[Annotated[float, Field(gt=0)]] = 8.0
    """`decay`: an occurrence so many places back counts half."""
    length: OneOrMore[Positive] = 50
    """The newest items that are taken, each once."""

    def candidates(self) -> list[Self]:
        """The half-life says nothing but of `decay`."""
        several = self.half_life if isinstance(self.half_life, list) else [self.half_life]
        return [each for each in super().candidates() if each.order == "decay" or each.half_life == several[0]]

    def scorer(self, data: Prepared) -> Recent:
        return Recent(data, self)


class Recent(ListedScorer):
    """Lists the user's items in the config's order."""

    def __init__(self, data: Prepared, config: RecentConfig) -> None:
        super().__init__(data, single(config.length))
        self.order: Order = single(config.order)
        self.half_life = single(config.half_life)

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.baselines.history import History, padded

        history = History.of(batch)
        kept, _ = history.first(self.length)
        newest_K, score_K = history.groups[0][kept], self._scores(history)[kept]
        best = newest_K[np.lexsort((newest_K, -score_K, history.query_N[newest_K]))]
        item_QL = padded(history.query_N[best], history.item_N[best], history.queries, self.length)
        return (torch.from_numpy(item_QL).to(batch.item_T.device),)

    def _scores(self, history: History) -> Integers | np.ndarray:
        """Of each item of each target: [U]."""
        newest_U, group_N = history.groups
        if self.order == "recency":
            return -history.back_N[newest_U]
        if self.order == "frequency":
            return np.bincount(group_N, minlength=len(newest_U))
        return np.bincount(group_N, 0.5 ** (history.back_N / self.half_life), len(newest_U))
