"""Where a model is good and where it is not: the metric of all models over parts of the targets.

By the user's history before the target, by how often training has its item, by whether the user had it before, by
whether it begins a session, and by whether the first model named each intent right. With a control (a model of kind
`deep`), the first model's difference to it in each part, with the normal limit of bootstrap and randomisation test over
users: whether intents help, and whether a wrong one harms. Parts that are chosen by what a model predicted
are no random ones: of targets whose intent is named right the item is often easier, too, for every model.

    N  targets     S  segments     M  models
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from evaluation.metrics import Floats, Ints, target_values
from evaluation.results import Segment
from evaluation.significance import moments_of, normal_limit

HISTORY = (1, 5, 10, 20, 50)
COUNTS = (1, 10, 100)


def segments_of(times: bool, intents: Sequence[str]) -> dict[tuple[str, str], pl.Expr]:
    """What each segment is by and its name, and which targets are in it, by their columns (evaluation/targets.py)."""
    place, count = pl.col("place"), pl.col("count")
    found = {("history", f"{low} to {high - 1}"): place.is_between(low, high - 1) for low, high in pairwise(HISTORY)}
    found["history", f"{HISTORY[-1]} and more"] = place >= HISTORY[-1]
    found["item in training", "never"] = count == 0
    found |= {("item in training", f"{low} to {high - 1} times"): count.is_between(low, high - 1)
              for low, high in pairwise(COUNTS)}  # fmt: skip
    found["item in training", f"{COUNTS[-1]} times and more"] = count >= COUNTS[-1]
    found["item for the user", "new"], found["item for the user", "had before"] = ~pl.col("again"), pl.col("again")
    if times:
        found["session", "begins"], found["session", "goes on"] = pl.col("new_session"), ~pl.col("new_session")
    for name in intents:
        hit = pl.col(f"hit_{name}")
        found[f"intent {name}", "right"], found[f"intent {name}", "wrong"] = hit, ~hit
    return found


class SegmentSums:
    """Sums over targets, which several workers' add up to; `control` is one of `models`, or None."""

    def __init__(
        self, segments: dict[tuple[str, str], pl.Expr], models: Sequence[str], control: str | None, metric: str
    ) -> None:
        self.segments, self.models, self.control, self.metric = segments, models, control, metric
        self.targets_S = np.zeros(len(segments), dtype=np.int64)
        self.values_SM = np.zeros((len(segments), len(models)))
        self.moments_SX = np.zeros((len(segments), 6))
        """Of the first model less the control, as `significance.moments_of` has them."""

    def add(self, user_N: Ints, ranks: dict[str, Ints], facts: pl.DataFrame) -> None:
        """Count targets: a number of each one's user, its rank by model, and its columns."""
        values = [target_values(ranks[model], self.metric) for model in self.models]
        self.add_values(user_N, np.stack(values, axis=1), facts)

    def add_values(self, user_N: Ints, value_NM: Floats, facts: pl.DataFrame) -> None:
        """Likewise, with each model's value of the metric at each target."""
        inside = facts.select(where.fill_null(False).alias(str(s)) for s, where in enumerate(self.segments.values()))
        inside_NS = inside.to_numpy().astype(bool)
        self.targets_S += inside_NS.sum(axis=0)
        self.values_SM += inside_NS.T.astype(np.float64) @ value_NM
        if self.control is not None:
            delta_N = value_NM[:, 0] - value_NM[:, self.models.index(self.control)]
            for moments_X, inside_N in zip(self.moments_SX, inside_NS.T, strict=True):
                moments_X += moments_of(delta_N[inside_N], np.unique(user_N[inside_N], return_inverse=True)[1])

    @property
    def sums(self) -> tuple[Ints, Floats, Floats]:
        """What workers add up."""
        return self.targets_S, self.values_SM, self.moments_SX

    def found(self, parts: Sequence[tuple[Ints, Floats, Floats]], resamples: int) -> list[Segment]:
        """The segments that have targets, from the `sums` of all workers."""
        targets_S, values_SM, moments_SX = (sum(arrays) for arrays in zip(*parts, strict=True))
        rows = zip(self.segments, targets_S.tolist(), values_SM, moments_SX, strict=True)
        return [
            Segment(
                by=by,
                name=name,
                targets=targets,
                values=dict(zip(self.models, _list(values_M / targets), strict=True)),
                versus={} if self.control is None else {self.control: normal_limit(moments_X, self.metric, resamples)},
            )
            for (by, name), targets, values_M, moments_X in rows
            if targets
        ]


def _list(values: Floats) -> list[float]:
    found: list[float] = values.tolist()
    return found
