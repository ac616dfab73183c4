"""The intents where they act: predicted labels as scores of what bears them, and as gates of copying against the rest.

    T  tokens     Q  targets     N  rows of any kind     L  labels of all intents, side by side     M  intents

With p^m the predicted distribution of intent m, and y_m(c) the share of each label in what candidate c bears (1 for the
one label, 1 / n for each of n; all alike where it is unknown), a candidate's logit gains

    sum_m w_m sum_l y_ml(c) log p^m_l          its own weights w for the table, for places of the history, for moments

An item of the table, or of a moment, bears the labels that last (a genre); a place of the history those of its
interaction, too (its action, the item's age then). Both are products: y are further columns of candidates, w log p of
queries. Gates, linear in all log p, are added to the logits of the history, to those of the item that was last, and to
those of the moment: so what a session is about decides whether it goes on, goes back or discovers; a feature of kind
`repeat` is an intent that says so.

All weights and gates begin as zero: a model's first scores are those without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from ingest.data.batch import Lists
from ingest.data.manifest import Manifest
from ingest.features.feature import FIRST_VALUE


class Part(IntEnum):
    """Of the scores."""

    TABLE, HISTORY, RECENT = range(3)


@dataclass(frozen=True)
class Acting:
    """What a part of the scores takes of the intents."""

    asked_NL: Tensor
    """The queries' columns."""
    label_XL: Tensor
    """The candidates'."""
    own_N: Tensor
    """The gate of all that the part gives a query."""
    same_N: Tensor
    """That of the item that was last."""

    def gates(self, width: int, own: int, same: int) -> Tensor:
        """Both gates at their places among `width` columns, [N, `width`]."""
        found_NX = self.own_N.new_zeros(len(self.own_N), width)
        found_NX[:, own], found_NX[:, same] = self.own_N, self.same_N
        return found_NX


class IntentScores(nn.Module):
    """Weights and gates; what they act with is a model's predicted logits."""

    def __init__(self, manifest: Manifest, pointers: bool = True) -> None:
        """`pointers`: whether there are candidates of each query's own, to be gated."""
        super().__init__()
        self.sizes = manifest.labels
        self.weights = nn.Parameter(torch.zeros(len(Part), len(self.sizes)))
        sizes = torch.tensor(list(self.sizes.values()))
        self.intent_L: Tensor
        self.register_buffer("intent_L", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        """The number of each label's intent."""
        self.gates = nn.Linear(sum(self.sizes.values()), 3) if pointers else None
        for parameter in self.gates.parameters() if self.gates else ():
            nn.init.zeros_(parameter)

    def forward(self, logits: Mapping[str, Tensor]) -> Tensor:
        """The log-probabilities of all labels: [T, labels] of each intent -> [T, L]."""
        return torch.cat([logits[name].float().log_softmax(dim=1) for name in self.sizes], dim=1)

    def of(self, log_p_NL: Tensor, name: str) -> Tensor | None:
        """The log-probabilities of one intent's labels; None where it is none."""
        if name not in self.sizes:
            return None
        return log_p_NL.split(list(self.sizes.values()), dim=1)[list(self.sizes).index(name)]

    def asked(self, log_p_NL: Tensor, part: Part) -> Tensor:
        """The queries' columns: [N, L]."""
        return log_p_NL * self.weights[part].index_select(0, self.intent_L)

    def acting(self, log_p_NL: Tensor, label_XL: Tensor, part: Part) -> Acting:
        """For a part with candidates of each query's own, that bear `label_XL`."""
        assert self.gates is not None
        history_N, same_N, recent_N = self.gates(log_p_NL).unbind(dim=1)
        own_N = history_N if part == Part.HISTORY else recent_N
        return Acting(self.asked(log_p_NL, part), label_XL, own_N, same_N)

    def labels(self, values: Mapping[str, Tensor | Lists], count: int) -> Tensor:
        """y of `count` candidates from their values of some intents, [N] or lists of them; the others' are zeros."""
        none = [self.weights.new_zeros(count, size) for size in self.sizes.values()]
        named = zip(self.sizes.items(), none, strict=True)
        return torch.cat([shares(values[name], n) if name in values else zeros for (name, n), zeros in named], dim=1)


def shares(value: Tensor | Lists, size: int) -> Tensor:
    """The share of each of `size` labels in the known values of each row, [N, size]; all alike without any."""
    if isinstance(value, Lists):
        index_N, rows = value.values, len(value.lengths)
        row_N = torch.repeat_interleave(value.lengths, output_size=len(index_N))
    else:
        row_N, index_N, rows = torch.arange(len(value), device=value.device), value, len(value)
    known_N = (index_N >= FIRST_VALUE).float()
    place_N = row_N * size + (index_N - FIRST_VALUE).clamp(min=0)
    count_Nl = torch.zeros(rows * size, device=index_N.device).index_add_(0, place_N, known_N).view(rows, size)
    total_N1 = count_Nl.sum(dim=1, keepdim=True)
    return torch.where(total_N1 > 0, count_Nl / total_N1.clamp(min=1), 1 / size)
