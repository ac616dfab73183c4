"""Negatives shared by a global batch, and the logQ correction of their scores.

    N  negatives     A  targets of all workers     V  items

Every worker draws the very same negatives: from the seed and the step, and in-batch ones from the sorted targets of all
workers, so that the gradient is the same on any number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from ingest.features.feature import FIRST_VALUE
from trainer.train_config import LossConfig


@dataclass(frozen=True)
class Negatives:
    """A step's negatives, each item once."""

    item_N: Tensor
    """Item indices, ascending."""
    log_q_N: Tensor
    """What a negative's score is lowered by: log of the expected number of its draws over their actual number."""


class NegativeSampler:
    """Draws negatives with replacement from the items 2 .. V - 1.

    - `uniform`: every item alike.
    - `log_uniform`: Zipf's law over the item index, which falls with popularity.
    - `in_batch`: from the targets of the global batch, so an item's probability is its share of training's targets
      (Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019, who
      estimate that share from the stream; here it is counted, over all targets of a row also where `reader.windows`
      is off and only the last are trained).
    - `mixed`: `in_batch_share` of the negatives from the batch, the rest uniform (Yang et al., Mixed negative sampling
      for learning two-tower neural networks in recommendations, WWW 2020). The expected counts of both parts add up.

    `counts`: how often each item is a target of training, [V] (`ingest.data.transitions`); only in-batch negatives need
    them. They stay in the host's memory.
    """

    def __init__(self, config: LossConfig, items: int, seed: int, counts: NDArray | None = None) -> None:
        self.sampling, self.known, self.seed = config.sampling, items - FIRST_VALUE, seed
        share = {"in_batch": 1.0, "mixed": config.in_batch_share}.get(config.sampling, 0.0)
        self.from_batch = round(share * config.negatives)
        self.from_catalogue = config.negatives - self.from_batch
        self.counts_V = None if counts is None else torch.from_numpy(counts)
        self.targets = 0 if counts is None else max(int(counts[FIRST_VALUE:items].sum()), 1)

    @property
    def needs_targets(self) -> bool:
        """Whether a draw depends on the targets of the global batch."""
        return self.from_batch > 0

    def __call__(self, step: int, target_A: Tensor) -> Negatives:
        """The negatives of a step, on the device of `target_A`: the targets of all workers, in any order.

        Where a draw does not need them, this worker's alone do.
        """
        item_N, drawn_N = self.draw(step, target_A).unique(return_counts=True)
        log_q_N = (self.log_expected(item_N) - drawn_N.log()).float()
        return Negatives(item_N.to(target_A.device), log_q_N.to(target_A.device))

    def draw(self, step: int, target_A: Tensor) -> Tensor:
        """The items drawn in a step, some more than once, on the CPU: [`negatives`].

        A batch without a known target gives no in-batch negatives; it has no loss either.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        uniform = torch.rand(self.from_catalogue, generator=generator, dtype=torch.float64)
        if self.sampling == "log_uniform":
            rank = torch.expm1(uniform * math.log(self.known + 1)).long()
        else:
            rank = (uniform * self.known).long()
        item = rank.clamp(max=self.known - 1) + FIRST_VALUE
        if not self.from_batch:
            return item
        sorted_A = target_A.sort().values
        unknown = int((sorted_A < FIRST_VALUE).sum())
        known = len(sorted_A) - unknown
        if not known:
            return item
        place = (torch.rand(self.from_batch, generator=generator, dtype=torch.float64) * known).long()
        return torch.cat([item, sorted_A[(unknown + place.clamp(max=known - 1)).to(sorted_A.device)].cpu()])

    def log_expected(self, item_N: Tensor) -> Tensor:
        """The logarithm of how often each item is expected among a step's draws, on the CPU: float64 [N].

        Raises `ValueError` where the sampling needs the items' counts and has none.
        """
        if self.sampling == "log_uniform":
            probability_N = torch.log1p(1 / (item_N - FIRST_VALUE + 1).double()) / math.log(self.known + 1)
        else:
            probability_N = torch.full((len(item_N),), 1 / self.known, dtype=torch.float64)
        expected_N = self.from_catalogue * probability_N
        if self.from_batch:
            if self.counts_V is None:
                raise ValueError(f"loss.sampling {self.sampling} needs the items' counts as targets of training")
            # one that was counted nowhere, after unknown items alone, may be drawn
            expected_N += self.from_batch / self.targets * self.counts_V[item_N].clamp(min=1).double()
        return expected_N.log()
