"""Which of the stored interactions are a batch's tokens, and which its targets; columns are split into the two.

B  sequences        T  tokens        Q  targets
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.arrays import kernels
from ingest.arrays.jagged import Jagged

Integers = NDArray[np.int64]
Lists = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Values and lengths."""


@dataclass(frozen=True)
class Spans:
    """Sequences' places among stored interactions: `tokens_B` from `start_B` on, `targets_B` from `first_B` on."""

    start_B: Integers
    tokens_B: Integers
    first_B: Integers
    targets_B: Integers

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """T and Q."""
        return int(self.tokens_B.sum()), int(self.targets_B.sum())

    @cached_property
    def tokens_alone(self) -> Spans:
        """The same tokens and no target."""
        return replace(self, first_B=self.start_B, targets_B=np.zeros_like(self.targets_B))

    @property
    def places(self) -> tuple[Integers, Integers, Integers, Integers]:
        """As the kernels take them."""
        return self.start_B, self.tokens_B, self.first_B, self.targets_B

    def empty(self, kind: Any = np.int64) -> tuple[NDArray, NDArray]:
        """Two arrays to be filled, [T] and [Q]."""
        return np.empty(self.sizes[0], dtype=kind), np.empty(self.sizes[1], dtype=kind)

    def of(self, values: NDArray, kind: Any = np.int64) -> tuple[NDArray, NDArray]:
        """The tokens' values [T] and the targets' [Q]."""
        out = self.empty(kind)
        kernels.split(values, *self.places, *out)
        return out

    def of_lists(self, lists: Jagged) -> tuple[Lists, Lists]:
        """Likewise of lists: their values and lengths."""
        lengths = self.empty()
        kernels.split_lengths(lists.offsets, *self.places, *lengths)
        start_B, first_B = lists.offsets[self.start_B], lists.offsets[self.first_B]
        within = Spans(
            start_B,
            lists.offsets[self.start_B + self.tokens_B] - start_B,
            first_B,
            lists.offsets[self.first_B + self.targets_B] - first_B,
        )
        values = within.of(lists.values)
        return (values[0], lengths[0]), (values[1], lengths[1])
