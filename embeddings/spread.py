"""Popular rows spread over the workers: a fixed permutation between a vocabulary's indices and its table's rows.

Indices fall with popularity and a row-wise table is cut into blocks of rows, so without it the first worker would serve
most lookups. The permutation does not depend on the number of workers: a checkpoint fits any.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ingest.features.feature import FIRST_VALUE

_GOLDEN = (1 + math.sqrt(5)) / 2


class Spread:
    """Index i of n known values lies in row (i times a factor) modulo n; padding and unknown stay where they are.

    The factor is the first number from n over the golden ratio on that has no divisor in common with n. Multiples of
    the golden ratio fill an interval as evenly as any sequence does (Knuth, TAOCP 3, section 6.4: Fibonacci hashing),
    so each block of rows has its share of the most popular, of the next most popular, and so on.
    """

    def __init__(self, rows: int) -> None:
        self.known = max(rows - FIRST_VALUE, 1)
        factor = max(round(self.known / _GOLDEN), 1)
        while math.gcd(factor, self.known) != 1:
            factor += 1
        self.factor, self.inverse = factor, pow(factor, -1, self.known)

    def rows(self, index_N: Tensor) -> Tensor:
        """The rows of indices of a vocabulary, int64."""
        return self._moved(index_N, self.factor)

    def indices(self, row_N: Tensor) -> Tensor:
        """The indices that lie in rows, int64."""
        return self._moved(row_N, self.inverse)

    def _moved(self, place_N: Tensor, factor: int) -> Tensor:
        moved_N = (place_N - FIRST_VALUE).mul_(factor).remainder_(self.known).add_(FIRST_VALUE)
        return torch.where(place_N < FIRST_VALUE, place_N, moved_N)
