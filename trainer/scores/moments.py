"""What is taken lately, and what is new: items of the moment of the request are candidates of every target.

    Q  targets     G  moments     M  items of each, padded     U  different ones of a batch     F  their features
    D  dimension   H  width of what is learned of the features      S  spans in which events are counted by a value
    B  blocks of targets of the same moment

The logit of item i at moment t for a target q (`ingest.data.moments` has the items and the features x_i(t)):

    b_qi = q_q . k_i / sqrt(D) + w_q . f(x_i(t)) + g_q + sum over spans s of v_qs log(1 + c_is(t))

q, w, g and v are linear in the model's query, k in the candidate's vector, f is a small network of the counts and the
age. So an item is found by what it is and by how it is taken now, also one that training never saw. The last term is
there where a feature of the request is named: c counts the events with the request's own value, in the same place of
the app, on the same device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.data.moments import BY_SPANS, FEATURES, Snapshots
from ingest.durations import parse_duration
from ingest.features.feature import FIRST_VALUE
from trainer.distinct import distinct
from trainer.scores.intents import Acting
from trainer.scores.pointers import Candidates, sum_exp
from trainer.softmax import Pointed

HOURS = 2**20
"""More than moments get old, in hours: 119 years."""
TOGETHER = 16
"""Targets of a moment that are one product."""


@dataclass(frozen=True)
class Groups:
    """Targets of the same moment, to be multiplied together: in blocks, the first of each moment, then the others."""

    place_Q: Tensor
    """Where each target is among the blocks' places."""
    group_b: Tensor
    """The moments of the blocks that are not the first of theirs."""

    @classmethod
    def of(cls, group_Q: Tensor, groups: int) -> Groups:
        """Of targets that each belong to one of `groups`. Waits for a GPU."""
        count_G = torch.bincount(group_Q, minlength=groups)
        order_Q = group_Q.argsort(stable=True)
        nth_Q = torch.empty_like(order_Q)
        nth_Q[order_Q] = (
            torch.arange(len(group_Q), device=group_Q.device) - (count_G.cumsum(0) - count_G)[group_Q[order_Q]]
        )
        further_G = (count_G - 1).clamp(min=0) // TOGETHER
        block_Q = groups - 1 + (further_G.cumsum(0) - further_G)[group_Q] + nth_Q // TOGETHER
        block_Q = torch.where(nth_Q < TOGETHER, group_Q, block_Q)
        return cls(block_Q * TOGETHER + nth_Q % TOGETHER, torch.repeat_interleave(further_G))

    def products(self, query_QX: Tensor, rows_GMX: Tensor) -> Tensor:
        """Each query's products with the rows of its group: [Q, M].

        Rows are gathered as embeddings are, whose gradient is many times faster on a CPU than that of an index; those
        of first blocks, most of them, are not gathered at all.
        """
        groups, width = len(rows_GMX), query_QX.shape[1]
        padded = query_QX.new_zeros((groups + len(self.group_b)) * TOGETHER, width).index_copy(
            0, self.place_Q, query_QX
        )
        query_BXt = padded.view(-1, TOGETHER, width).mT
        found = torch.bmm(rows_GMX, query_BXt[:groups])
        if len(self.group_b):
            rows_bMX = F.embedding(self.group_b, rows_GMX.flatten(1)).unflatten(1, rows_GMX.shape[1:])
            found = torch.cat([found, torch.bmm(rows_bMX, query_BXt[groups:])])
        return F.embedding(self.place_Q, found.mT.flatten(0, 1))


@dataclass(frozen=True)
class Moments:
    """The moments of a batch's targets."""

    item_U: Tensor
    """The different items of all of them."""
    place_GM: Tensor
    """Where each moment's items are among them."""
    feature_GMF: Tensor
    """Of `Snapshots`, and log(1 + hours) between the moment and the request."""
    moment_Q: Tensor
    """The moment of each target."""
    groups: Groups
    """The targets of the same moment."""
    by_QMS: Tensor | None = None
    """log(1 + events) of each candidate with the request's own value of the feature that counts are by."""

    @classmethod
    def of(
        cls, snapshots: Snapshots, time_Q: Tensor, until_Q: Tensor, step: int, value_Q: Tensor | None = None
    ) -> Moments:
        """The moments of requests at `time_Q`, in milliseconds, that know what came before `until_Q`; the last one for
        those after it. `value_Q`: of the feature that the snapshots' counts are by, at each request.

        How old a moment is at the request counts in hours, from 1 hour more than a step on.
        """
        last = snapshots.first + len(snapshots.item_GM) - 1
        number_Q = (until_Q // step).clamp(snapshots.first, last)
        hours_Q = (time_Q - (number_Q + 1) * step).clamp(min=0) // parse_duration("1h")
        moment_G, moment_Q = (number_Q * HOURS + hours_Q.clamp(max=HOURS - 1)).unique(return_inverse=True)
        chosen = (moment_G // HOURS - snapshots.first).cpu().numpy()
        item_GM, feature_GMF = (
            torch.from_numpy(values[chosen]).to(time_Q.device) for values in (snapshots.item_GM, snapshots.feature_GMF)
        )
        by_QMS = None
        if value_Q is not None:
            own = snapshots.by(chosen[moment_Q.cpu().numpy()], value_Q.cpu().numpy())
            by_QMS = torch.from_numpy(own).to(time_Q.device)
        hours_GM1 = (moment_G % HOURS).float().log1p()[:, None, None].expand(-1, item_GM.shape[1], -1)
        item_U, place_GM = distinct(item_GM)
        feature_GMF = torch.cat([feature_GMF, hours_GM1], dim=2)
        return cls(item_U, place_GM, feature_GMF, moment_Q, Groups.of(moment_Q, len(moment_G)), by_QMS)


class MomentPointer(nn.Module):
    """The candidates of the moment. `items`: how many there are to rank; `size`: of them at a moment; `by`: whether
    counts are by a feature of the request."""

    def __init__(self, dimension: int, items: int, size: int, by: bool = False, hidden: int = 32) -> None:
        super().__init__()
        self.sizes = [dimension, hidden, 1]
        self.query = nn.Linear(dimension, sum(self.sizes))
        self.by = nn.Linear(dimension, len(BY_SPANS)) if by else None
        for parameter in self.by.parameters() if self.by else ():
            nn.init.zeros_(parameter)
        self.key = nn.Linear(dimension, dimension, bias=False)
        self.features = nn.Sequential(nn.Linear(FEATURES + 1, 64), nn.GELU(), nn.Linear(64, hidden))
        with torch.no_grad():
            self.query.weight[dimension:] = 0
            self.query.bias[dimension:] = torch.randn(hidden + 1) / math.sqrt(hidden)
            # all of them together about as likely as the catalogue, whose scores begin at 0
            self.query.bias[-1] = math.log(max(items / size, 2))

    def forward(
        self,
        query_QD: Tensor,
        candidates_UD: Tensor,
        moments: Moments,
        target_Q: Tensor,
        listed: bool,
        acting: Acting | None = None,
    ) -> tuple[Pointed, Candidates | None]:
        """What the moments give each target, and, where they are to be `listed`, its candidates one by one."""
        match_QD, shown_QH, gate_Q1 = self.query(query_QD).split(self.sizes, dim=1)
        products, place_GM = moments.groups.products, moments.place_GM
        key_GMD = F.embedding(place_GM, self.key(candidates_UD))
        logit_QM = products(match_QD / math.sqrt(self.sizes[0]), key_GMD).float() + gate_Q1.float()
        logit_QM = logit_QM + products(shown_QH, self.features(moments.feature_GMF)).float()
        if acting is not None:
            logit_QM = logit_QM + products(acting.asked_NL, F.embedding(place_GM, acting.label_XL)).float()
            logit_QM = logit_QM + acting.own_N[:, None].float()
        if self.by is not None:
            assert moments.by_QMS is not None
            logit_QM = logit_QM + (moments.by_QMS @ self.by(query_QD)[:, :, None].float())[:, :, 0]
        item_QM = moments.item_U[place_GM][moments.moment_Q]
        logit_QM = logit_QM.masked_fill(item_QM < FIRST_VALUE, -torch.inf)
        pointed = Pointed(*sum_exp(logit_QM, item_QM == target_Q[:, None]))
        return pointed, Candidates(item_QM, logit_QM) if listed else None
