"""The losses of the intents against dense formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingest.data.batch import Lists
from trainer.losses import intent_hits, intent_loss

LABELS = [[2, 4], [], [1], [3, 1, 2], [5]]


def jagged(rows: list[list[int]]) -> Lists:
    return Lists(torch.tensor([v for row in rows for v in row]), torch.tensor([len(row) for row in rows]))


def test_intent_loss_of_several_labels_is_the_mean_of_the_known_ones() -> None:
    torch.manual_seed(0)
    logits, weight = torch.randn(len(LABELS), 4, dtype=torch.float64, requires_grad=True), torch.rand(5).double()
    expected = torch.zeros((), dtype=torch.float64)
    for q, labels in enumerate(LABELS):
        known = [label - 2 for label in labels if label >= 2]
        for label in known:
            expected = expected - weight[q] * logits[q].softmax(0)[label].log() / len(known)
    loss = intent_loss(logits, jagged(LABELS), weight)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_intent_loss_of_one_label_is_cross_entropy_without_the_unknown() -> None:
    torch.manual_seed(0)
    logits, weight = torch.randn(6, 3), torch.rand(6)
    label = torch.tensor([2, 1, 4, 3, 0, 2])
    known = label >= 2
    expected = (weight * F.cross_entropy(logits, (label - 2).clamp(min=0), reduction="none"))[known].sum()
    torch.testing.assert_close(intent_loss(logits, label, weight), expected)


def test_intent_hits_count_a_true_label_at_the_top() -> None:
    logits = torch.eye(4)[[2, 0, 0, 3, 3]]
    hits, known = intent_hits(logits.argmax(dim=1) + 2, jagged(LABELS))
    assert hits.tolist() == [True, False, False, False, True]
    assert known.tolist() == [True, False, False, True, True]
    hits, known = intent_hits(logits.argmax(dim=1) + 2, torch.tensor([4, 1, 2, 2, 0]))
    assert hits.tolist() == [True, False, True, False, False]
    assert known.tolist() == [True, False, True, True, False]
