"""The user's own items by how often people go back to such ones, counted in the training data, then all others.

Such ones: the same number of different items ago (the stack distance), and, with `by`, the same value of a feature at
the newest interaction with the item: so what is in the cart can come before what was viewed, and what was bought last.
Return rates by recency: Anderson, Kumar, Tomkins and Vassilvitskii, "The Dynamics of Repeat Consumption", WWW 2014.

    Q  targets     U  the different items that every target's user had     L  `length`     G  values of `by`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from evaluation.baselines.base import BaselineConfig, ListedScorer, OneOrMore, Positive, check_feature, single
from ingest.features.feature import has_one_index
from trainer.models.registry import register

if TYPE_CHECKING:
    from evaluation.baselines.base import Prepared
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from ingest.data.schema import DataConfig
    from trainer.recommender import Query
    from trainer.train_config import TrainConfig


@register
class ReturnsConfig(BaselineConfig):
    kind: Literal["returns"] = "returns"
    by: OneOrMore[str | None] = None
    """A feature with one value of a vocabulary or of bins: items are told apart by it, too."""
    length: OneOrMore[Positive] = 50
    """The newest items that are taken, each once."""

    @property
    def reads_features(self) -> bool:
        return self.by is not None

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        check_feature(self.by, filter(has_one_index, data.features), "a feature with one value")

    def scorer(self, data: Prepared) -> Returns:
        return Returns(data, single(self.by), single(self.length))


class Returns(ListedScorer):
    """Lists the user's items, those that people go back to most often first."""

    def __init__(self, data: Prepared, by: str | None, length: int) -> None:
        super().__init__(data, length)
        self.by = by
        sizes = {feature.name: feature.size for feature in data.manifest.features}
        self.values = sizes[by] if by else 1
        seen_GL, taken_GL = np.zeros((2, self.values, length))
        for batch in data.training_batches(features=by is not None):
            query_U, item_U, back_U, value_U = self._own(batch)
            hit_U = item_U == batch.target_Q.numpy()[query_U]
            np.add.at(seen_GL, (value_U, back_U), 1)
            np.add.at(taken_GL, (value_U[hit_U], back_U[hit_U]), 1)
        mean_L = (taken_GL.sum(axis=0) + 1) / (seen_GL.sum(axis=0) + length)
        self.rate_GL = (taken_GL + mean_L) / (seen_GL + 1)
        """The share of such items that is taken next; one more, with the mean over all values, is counted besides."""

    def _own(self, batch: Batch) -> tuple[Integers, Integers, Integers, Integers]:
        """Of each target's `length` newest items: the target, the item, how many items ago, the value: [U] each."""
        from evaluation.baselines.history import History

        history = History.of_tokens(batch)
        kept, back_U = history.first(self.length)
        newest_U = history.groups[0][kept]
        query_U = history.query_N[newest_U]
        token_U = batch.target_position_Q.cpu().numpy()[query_U] - history.back_N[newest_U]
        value_U = np.zeros_like(query_U) if self.by is None else _values(batch, self.by)[token_U]
        return query_U, history.item_N[newest_U], back_U, value_U

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.baselines.history import padded

        query_U, item_U, back_U, value_U = self._own(batch)
        best = np.lexsort((back_U, -self.rate_GL[value_U, back_U], query_U))
        item_QL = padded(query_U[best], item_U[best], len(batch.target_Q), self.length)
        return (torch.from_numpy(item_QL).to(batch.item_T.device),)


def _values(batch: Batch, name: str) -> Integers:
    """The feature of each token."""
    from torch import Tensor

    values = batch.features[name]
    assert isinstance(values, Tensor)
    found: Integers = values.cpu().numpy()
    return found
