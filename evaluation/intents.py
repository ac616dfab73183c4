"""How well an intent is predicted, from counts that add up over batches and workers.

    accuracy            how often the likeliest label is a true one
    macro F1            the mean of F1 over the labels that are a true or the likeliest one of any target: of a label,
                        2 hits / (times it was the likeliest + times it was a true one)
    log loss            the mean of -log p of the true label; of several true ones the mean of theirs, as in training
    calibration error   ECE of Guo et al., arXiv 1706.04599: targets in `BINS` equal bins by the likeliest label's
                        probability, |accuracy - mean probability| of each, weighted by its targets

A target whose true labels are all unknown counts nowhere. What is simplest to name: the label that is most common in
training, and that of the user's last interaction.

    Q  targets     L  labels     N  true labels of all targets
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics import Floats, Ints
from evaluation.results import IntentQuality
from ingest.data.batch import Batch, Lists
from ingest.features.feature import FIRST_VALUE
from trainer.losses import intent_hits, intent_loss

BINS = 15


@dataclass
class IntentCounts:
    """Counts of one intent over the targets with a known true label."""

    labels: Ints
    """How often each label was named rightly, was named, and was a true one: [3, L]."""
    shares: Floats
    """The same as the last of them, but several true labels of a target share its 1: [L]."""
    bins: Floats
    """Targets, hits and the sum of the likeliest label's probability, by that probability: [3, BINS]."""
    log_loss: float = 0.0
    """Its sum."""

    @classmethod
    def of(cls, logits_QL: Tensor, label: Tensor | Lists) -> IntentCounts:
        """Of a model's logits."""
        logits_QL = logits_QL.double()
        counts = cls.of_labels(logits_QL.argmax(dim=1) + FIRST_VALUE, label, logits_QL.shape[1])
        top_Q, place_Q = logits_QL.softmax(dim=1).max(dim=1)
        hits_Q, known_Q = intent_hits(place_Q + FIRST_VALUE, label)
        bin_Q = (top_Q * BINS).long().clamp_(max=BINS - 1)[known_Q]
        rows = torch.ones_like(top_Q)[known_Q], hits_Q[known_Q].double(), top_Q[known_Q]
        counts.bins = np.stack([torch.bincount(bin_Q, row, BINS).cpu().numpy() for row in rows])
        counts.log_loss = float(intent_loss(logits_QL, label, torch.ones_like(top_Q)))
        return counts

    @classmethod
    def of_labels(cls, top_Q: Tensor, label: Tensor | Lists, labels: int) -> IntentCounts:
        """Of one label named for each target, by its index in the vocabulary, without probabilities."""
        hits_Q, known_Q = intent_hits(top_Q, label)
        row_N = torch.arange(len(top_Q), device=top_Q.device)
        if isinstance(label, Lists):
            row_N = torch.repeat_interleave(label.lengths)
        value_N = label.values if isinstance(label, Lists) else label
        row_N, value_N = row_N[value_N >= FIRST_VALUE], value_N[value_N >= FIRST_VALUE]
        share_N = 1 / torch.bincount(row_N, minlength=len(top_Q)).double()[row_N]
        named = top_Q[hits_Q & known_Q], top_Q[known_Q], value_N
        found = [torch.bincount(index_N - FIRST_VALUE, minlength=labels) for index_N in named]
        shares_L = torch.bincount(value_N - FIRST_VALUE, share_N, labels)
        return cls(torch.stack(found).cpu().numpy(), shares_L.cpu().numpy(), np.zeros((3, BINS)))

    def __add__(self, other: IntentCounts) -> IntentCounts:
        return IntentCounts(
            self.labels + other.labels,
            self.shares + other.shares,
            self.bins + other.bins,
            self.log_loss + other.log_loss,
        )

    @property
    def accuracy(self) -> float:
        """0 where no target has a label."""
        hits_L, named_L, _ = self.labels
        return int(hits_L.sum()) / max(int(named_L.sum()), 1)

    @property
    def shares_log_loss(self) -> float:
        """The log loss of naming the labels' shares among these targets: no constant prediction has a lower one."""
        p_L = self.shares[self.shares > 0] / max(self.shares.sum(), 1)
        return float(-(p_L * np.log(p_L)).sum())

    def quality(self) -> IntentQuality:
        hits_L, named_L, true_L = self.labels
        occurs_L = named_L + true_L > 0
        f1_L = 2 * hits_L[occurs_L] / (named_L + true_L)[occurs_L]
        targets, hits, confidence = self.bins
        known = float(targets.sum())
        return IntentQuality(
            accuracy=self.accuracy,
            macro_f1=float(f1_L.mean()) if len(f1_L) else 0.0,
            log_loss=self.log_loss / known if known else None,
            calibration_error=float(np.abs(hits - confidence).sum()) / known if known else None,
            targets=int(named_L.sum()),
        )


def last_label(batch: Batch, intent: str, majority: int) -> Tensor:
    """The label of the interaction before each target, [Q]: the most common of several; `majority` where none is known.

    A vocabulary's order is that of the counts, so the most common one is the first.
    """
    feature, at_Q = batch.features[intent], batch.target_position_Q
    none = torch.iinfo(torch.int64).max
    if isinstance(feature, Lists):
        token_N = torch.repeat_interleave(feature.lengths)
        known_N = feature.values.masked_fill(feature.values < FIRST_VALUE, none)
        label_T = feature.values.new_full((batch.tokens,), none).scatter_reduce_(0, token_N, known_N, "amin")
    else:
        label_T = feature.masked_fill(feature < FIRST_VALUE, none)
    label_Q = label_T[at_Q]
    return label_Q.masked_fill(label_Q == none, majority)
