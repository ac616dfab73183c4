"""What an item's age at the request says, and whether it is out yet, over the whole catalogue.

    Q  targets     C  candidates     S  days on which items appear     A  bins of ages

A candidate's logit gains u_q[bin of its age], u linear in the model's query; where intents act, also w log p of the
age's label. A step function of (day of the request - day of the item) is a product: of the query's part, u_q at (day of
the request - s) for each day s, and the candidate's, its day as one-hot. So ages are further columns of queries, of
which each candidate's score gains the one of its day (`trainer.softmax`).

The item's date is that of the first `elapsed` feature of items; one without a date is as old as any.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor, nn

from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.durations import parse_duration
from ingest.features.elapsed import MISSING_TIME
from ingest.features.feature import PreparedFeature, dated

DAY = parse_duration("1d")
MOST_DAYS = 1024
"""Columns at most; a log over more days counts in spans of several."""
AHEAD = parse_duration("30d")
"""How long after the log's end ages hold, where there are columns for it; at least for a day, or a span."""


class Calendar:
    """The days of a log, or spans of several days: from when all ages are alike to `AHEAD` after its end.

    The last one is all that comes later: what appears then is not out yet, whenever it is asked for.
    """

    def __init__(self, manifest: Manifest, feature: PreparedFeature) -> None:
        oldest, newest = manifest.first_time - int(feature.edges[-1] if feature.edges else 0), manifest.end
        self.span = DAY * max(1, -(-(newest - oldest) // (DAY * (MOST_DAYS - 4))))
        self.first = oldest // self.span - 1
        self.days = min((newest + AHEAD) // self.span + 2 - self.first, MOST_DAYS)
        self.oldest = newest // self.span + 3 - self.first
        """More than any age in the log."""

    def of(self, time_N: Tensor) -> Tensor:
        """The number of each time's day, which may lie outside."""
        return time_N // self.span - self.first


class Dates:
    """The day of each item of the catalogue, on a device."""

    def __init__(self, manifest: Manifest, items: ItemTable, device: torch.device) -> None:
        feature = dated(manifest.features)
        assert feature is not None
        calendar, date_V = Calendar(manifest, feature), items.columns[feature.name]
        assert isinstance(date_V, np.ndarray)
        day_V = calendar.of(torch.from_numpy(date_V)).clamp_(0, calendar.days - 1)
        self.day_V = day_V.masked_fill_(torch.from_numpy(date_V == MISSING_TIME), 0).to(device)

    def of(self, item_C: Tensor) -> Tensor:
        return self.day_V[item_C]


class AgeScores(nn.Module):
    """The columns of queries and candidates. `acts`: whether the ages' labels, as an intent, act. It begins as zero."""

    def __init__(self, manifest: Manifest, feature: PreparedFeature, dimension: int, acts: bool) -> None:
        super().__init__()
        self.name = feature.name
        self.calendar = Calendar(manifest, feature)
        labels = [-(-int(edge) // self.calendar.span) for edge in feature.edges]
        doublings = [2**n for n in range(self.calendar.oldest.bit_length())]
        self.edges = sorted({0, *labels, *doublings})
        """In days: an item of an age below 0 is not out yet."""
        self.edge_E: Tensor
        self.register_buffer("edge_E", torch.tensor(self.edges), persistent=False)
        self.label_A: Tensor
        label_A = torch.tensor([bisect_right(labels, edge) for edge in [0, *self.edges]])
        self.register_buffer("label_A", label_A, persistent=False)
        """The label of each bin."""
        self.linear = nn.Linear(dimension, len(self.edges) + 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.intent = nn.Parameter(torch.zeros(())) if acts and feature.intent else None

    def asked(self, query_QD: Tensor, time_Q: Tensor, log_p_QL: Tensor | None) -> Tensor:
        """What every day's items gain for the requests at `time_Q`: [Q, S]. `log_p_QL`: of the ages' labels alone."""
        score_QA = self.linear(query_QD)
        if log_p_QL is not None and self.intent is not None:
            score_QA = score_QA + self.intent * log_p_QL.index_select(1, self.label_A)
        age_QS = self.calendar.of(time_Q)[:, None] - torch.arange(self.calendar.days, device=time_Q.device)
        age_QS[:, -1] = -1
        found: Tensor = score_QA.gather(1, torch.bucketize(age_QS, self.edge_E, right=True))
        return found
