"""How well intents are predicted, against plain loops over targets and labels."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from evaluation.intents import BINS, IntentCounts, last_label
from ingest.data.batch import Lists
from ingest.features.feature import FIRST_VALUE
from tests.small import Data

LABELS = 6


def case(several: bool) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [60, LABELS], some of them sure of themselves, and the true labels of each target. The last is none."""
    random = np.random.default_rng(2)
    logits = torch.from_numpy(random.normal(0, 1, (60, LABELS)) * random.choice([0.1, 1, 9], (60, 1)))
    logits[:, [3, 5]] -= 50
    most = 3 if several else 1
    true = [random.choice(4, random.integers(0, most + 1), replace=False).tolist() for _ in range(60)]
    return logits, true


def label_of(true: list[list[int]], several: bool) -> torch.Tensor | Lists:
    """The labels as a batch has them; those without one have none, or the unknown one."""
    if several:
        values = [FIRST_VALUE + value for values in true for value in values]
        return Lists(
            torch.tensor(values, dtype=torch.int64), torch.tensor([len(values) for values in true], dtype=torch.int64)
        )
    return torch.tensor([FIRST_VALUE + values[0] if values else 1 for values in true], dtype=torch.int64)


@pytest.mark.parametrize("several", [False, True])
def test_quality_is_that_of_a_loop(several: bool) -> None:
    logits, true = case(several)
    parts = [slice(0, 7), slice(7, 7), slice(7, 60)]
    found = [IntentCounts.of(logits[part], label_of(true[part], several)) for part in parts]
    quality = (found[0] + found[1] + found[2]).quality()

    known = [(row, values) for row, values in zip(logits.softmax(dim=1).tolist(), true, strict=True) if values]
    named = [max(range(LABELS), key=row.__getitem__) for row, _ in known]
    hits = [top in values for top, (_, values) in zip(named, known, strict=True)]
    assert quality.targets == len(known) < len(true)
    assert quality.accuracy == sum(hits) / len(known)
    scores = []
    for label in range(LABELS):
        right = sum(hit and top == label for hit, top in zip(hits, named, strict=True))
        occurs = named.count(label) + sum(label in values for _, values in known)
        if occurs:
            scores.append(2 * right / occurs)
    assert 0.0 in scores
    assert len(scores) == LABELS - 1
    assert quality.macro_f1 == pytest.approx(np.mean(scores))
    losses = [np.mean([-math.log(row[value]) for value in values]) for row, values in known]
    assert quality.log_loss == pytest.approx(np.mean(losses))
    bins = defaultdict(list)
    for (row, _), hit in zip(known, hits, strict=True):
        bins[min(int(max(row) * BINS), BINS - 1)].append((hit, max(row)))
    gaps = [
        len(rows) * abs(np.mean([hit for hit, _ in rows]) - np.mean([top for _, top in rows])) for rows in bins.values()
    ]
    assert len(bins) > 5
    assert quality.calibration_error == pytest.approx(sum(gaps) / len(known))


@pytest.mark.parametrize("several", [False, True])
def test_no_constant_prediction_has_a_lower_log_loss_than_the_shares(several: bool) -> None:
    _, true = case(several)
    label = label_of(true, several)
    shares = IntentCounts.of_labels(torch.full((60,), FIRST_VALUE), label, LABELS)
    assert shares.quality().log_loss is None

    def loss(p: np.ndarray) -> float:
        constant = torch.from_numpy(np.log(np.maximum(p, 1e-300))).expand(60, -1)
        return IntentCounts.of(constant, label).quality().log_loss or 0.0

    best = shares.shares / shares.shares.sum()
    assert shares.shares_log_loss == pytest.approx(loss(best))
    for other in np.random.default_rng(0).dirichlet(200 * best + 1, 20):
        assert loss(other) > shares.shares_log_loss


def test_the_last_label_is_that_of_the_interaction_before(data: Data) -> None:
    """By the features of the tokens one by one; some have none, and `genres` several."""
    fallen_back = 0
    for batch, _ in data.reader("test", evaluate=True).epoch(0):
        for name in data.manifest.labels:
            feature = batch.features[name]
            if isinstance(feature, Lists):
                ends = feature.lengths.cumsum(0).tolist()
                rows = [
                    feature.values[end - n : end].tolist()
                    for n, end in zip(feature.lengths.tolist(), ends, strict=True)
                ]
            else:
                rows = [[value] for value in feature.tolist()]
            found = last_label(batch, name, 77).tolist()
            for label, at in zip(found, batch.target_position_Q.tolist(), strict=True):
                known = [value for value in rows[at] if value >= FIRST_VALUE]
                assert label == (min(known) if known else 77)
                fallen_back += not known
    assert fallen_back
