"""The losses of the intents, as sums over targets: dividing by the global weight gives the same gradient on any number
of workers.

    Q  targets     L  labels of an intent     N  true labels of all targets
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ingest.data.batch import Lists
from ingest.features.feature import FIRST_VALUE


def intent_loss(logits_QL: Tensor, label: Tensor | Lists, weight_Q: Tensor) -> Tensor:
    """The weighted sum of one intent's cross-entropy; a scalar.

    Labels are vocabulary indices; unknown ones have no loss. Of several true labels all are positives and nothing is a
    negative: the sum of their -log p divided by their number.
    """
    if isinstance(label, Lists):
        row_N = torch.repeat_interleave(label.lengths, output_size=len(label.values))
        known_N = (label.values >= FIRST_VALUE).to(weight_Q.dtype)
        count_Q = torch.zeros_like(weight_Q).index_add_(0, row_N, known_N)
        share_N = (weight_Q / count_Q.clamp_(min=1))[row_N] * known_N
        place_N = row_N * logits_QL.shape[1] + (label.values - FIRST_VALUE).clamp_(min=0)
        return -(share_N * F.log_softmax(logits_QL, dim=1).flatten().index_select(0, place_N)).sum()
    known_Q = (label - FIRST_VALUE).clamp_(min=-1)
    return (weight_Q * F.cross_entropy(logits_QL, known_Q, ignore_index=-1, reduction="none")).sum()


def intent_hits(top_Q: Tensor, label: Tensor | Lists) -> tuple[Tensor, Tensor]:
    """For each target whether the label `top_Q` is a true one, and whether there is a true one: two bools [Q]."""
    if isinstance(label, Lists):
        row_N = torch.repeat_interleave(label.lengths, output_size=len(label.values))
        zero_Q = torch.zeros_like(top_Q)
        hits_Q = zero_Q.index_add(0, row_N, (label.values == top_Q[row_N]).long())
        known_Q = zero_Q.index_add(0, row_N, (label.values >= FIRST_VALUE).long())
        return hits_Q > 0, known_Q > 0
    return label == top_Q, label >= FIRST_VALUE
