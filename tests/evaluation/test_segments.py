"""The first model against its control in parts of the targets: against the comparison of those targets alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from evaluation.metrics import target_values
from evaluation.segments import SegmentSums, segments_of
from evaluation.significance import Differences, compare


def test_a_part_is_compared_as_if_it_were_all() -> None:
    """In two pieces, as two workers have them. The limit of many users is near what is drawn."""
    random = np.random.default_rng(5)
    users = np.sort(random.integers(0, 900, 2000))
    ranks = {name: random.integers(0, 30, 2000) for name in ("ours", "control", "other")}
    hits = random.choice([True, False, None], 2000)
    facts = pl.DataFrame(
        {"place": random.integers(1, 70, 2000), "count": random.integers(0, 200, 2000),
         "again": random.random(2000) < 0.3, "hit_action": pl.Series(hits.tolist(), dtype=pl.Boolean)}
    )  # fmt: skip
    segments = segments_of(False, ["action"])
    parts = []
    for piece in (users < 400, users >= 400):
        sums = SegmentSums(segments, list(ranks), "control", "MRR")
        number = np.unique(users[piece], return_inverse=True)[1]
        sums.add(number, {name: rank[piece] for name, rank in ranks.items()}, facts.filter(piece))
        parts.append(sums.sums)
    found = {(segment.by, segment.name): segment for segment in sums.found(parts, 10_000)}
    assert ("session", "begins") not in found
    for key, inside in {
        ("intent action", "right"): hits == True,  # noqa: E712
        ("intent action", "wrong"): hits == False,  # noqa: E712
        ("history", "50 and more"): facts["place"].to_numpy() >= 50,
    }.items():
        values = {name: target_values(rank[inside], "MRR") for name, rank in ranks.items()}
        assert found[key].targets == inside.sum()
        assert found[key].values == pytest.approx({name: value.mean() for name, value in values.items()})
        drawn = Differences(10_000)
        drawn.add(values["ours"] - values["control"], np.unique(users[inside], return_inverse=True)[1])
        expected, row = compare(drawn, "MRR", 0), found[key].versus["control"]
        assert row.difference == pytest.approx(expected.difference)
        assert [row.low, row.high] == pytest.approx([expected.low, expected.high], abs=0.003)
        assert row.p == pytest.approx(expected.p, abs=0.03)
