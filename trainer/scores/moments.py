"""What is taken lately, and what is new: items of the moment of the request are candidates of every target.

    Q  targets     G  moments     M  items of each, padded     U  different ones of a batch     F  their features
    D  dimension   H  width of what is learned of the features      B  values of a feature of the request, in each span

The logit of item i at moment t for a target q (`ingest.data.moments` has the items and the features x_i(t)):

    b_qi = q_q . k_i / sqrt(D) + w_q . f(x_i(t)) + g_q + sum over spans s of v_qs log(1 + c_is(t))

q, w, g and v are linear in the model's query, k in the candidate's vector, f is a small network of the counts and the
age. So an item is found by what it is and by how it is taken now, also one that training never saw. The last term is
there where a feature of the request is named: c counts the events with the request's own value, in the same place of
the app, on the same device. As a query's one value among B it is a product, too.
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
from trainer.scores.intents import Acting
from trainer.scores.pointers import Candidates, sum_exp
from trainer.softmax import Pointed

HOURS = 2**20
"""More than moments get old, in hours: 119 years."""
TOGETHER = 16
"""Targets of a moment that are one product."""


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
    by_GMB: Tensor
    """Of `Snapshots`."""
    value_Q: Tensor | None = None
    """The value of the feature that counts are by, at each request."""

    @classmethod
    def of(
        cls, snapshots: Snapshots, time_Q: Tensor, until_Q: Tensor, step: int, value_Q: Tensor | None = None
    ) -> Moments:
        """The moments of requests at `time_Q`, in milliseconds, that know what came before `until_Q`; the last one for
        those after it.

        How old a moment is at the request counts in hours, from 1 hour more than a step on.
        """
        last = snapshots.first + len(snapshots.item_GM) - 1
        number_Q = (until_Q // step).clamp(snapshots.first, last)
        hours_Q = (time_Q - (number_Q + 1) * step).clamp(min=0) // parse_duration("1h")
        moment_G, moment_Q = (number_Q * HOURS + hours_Q.clamp(max=HOURS - 1)).unique(return_inverse=True)
        chosen = (moment_G // HOURS - snapshots.first).cpu().numpy()
        item_GM, feature_GMF, by_GMB = (
            torch.from_numpy(values[chosen]).to(time_Q.device)
            for values in (snapshots.item_GM, snapshots.feature_GMF, snapshots.by_GMB)
        )
        hours_GM1 = (moment_G % HOURS).float().log1p()[:, None, None].expand(-1, item_GM.shape[1], -1)
        item_U, place_GM = item_GM.unique(return_inverse=True)
        return cls(item_U, place_GM, torch.cat([feature_GMF, hours_GM1], dim=2), moment_Q, by_GMB, value_Q)


class MomentPointer(nn.Module):
    """The candidates of the moment. `items`: how many there are to rank; `size`: of them at a moment; `values`: of the
    feature of the request that counts are by, 0 without one."""

    def __init__(self, dimension: int, items: int, size: int, values: int = 0, hidden: int = 32) -> None:
        super().__init__()
        self.dimension, self.hidden, self.values = dimension, hidden, values
        self.query = nn.Linear(dimension, dimension + hidden + 1)
        self.by = nn.Linear(dimension, len(BY_SPANS)) if values else None
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
        asked_QX = self.query(query_QD)
        found_GMH = self.features(moments.feature_GMF)
        key_UD = self.key(candidates_UD)
        shown_GMX = torch.cat([F.embedding(moments.place_GM, key_UD), found_GMH], dim=2)
        scaled_QX = torch.cat(
            [asked_QX[:, : self.dimension] / math.sqrt(self.dimension), asked_QX[:, self.dimension : -1]], dim=1
        )
        gate_Q1 = asked_QX[:, -1:]
        if acting is not None:  # labels are products, too: further columns
            scaled_QX = torch.cat([scaled_QX, acting.asked_NL], dim=1)
            shown_GMX = torch.cat([shown_GMX, F.embedding(moments.place_GM, acting.label_XL)], dim=2)
            gate_Q1 = gate_Q1 + acting.own_N[:, None]
        if self.by is not None:
            assert moments.value_Q is not None
            own_QB = F.one_hot(moments.value_Q, self.values).to(scaled_QX.dtype)
            weight_QSB = self.by(query_QD)[:, :, None] * own_QB[:, None]
            scaled_QX = torch.cat([scaled_QX, weight_QSB.flatten(1)], dim=1)
            shown_GMX = torch.cat([shown_GMX, moments.by_GMB.to(shown_GMX.dtype)], dim=2)
        item_GM = moments.item_U[moments.place_GM]
        item_QM = item_GM[moments.moment_Q]
        logit_QM = products(scaled_QX, shown_GMX, moments.moment_Q).float() + gate_Q1.float()
        logit_QM = logit_QM.masked_fill(item_QM < FIRST_VALUE, -torch.inf)
        pointed = Pointed(*sum_exp(logit_QM, item_QM == target_Q[:, None]))
        return pointed, Candidates(item_QM, logit_QM) if listed else None


def products(query_QX: Tensor, rows_GMX: Tensor, group_Q: Tensor) -> Tensor:
    """Each query's products with the rows of its group: [Q, M]. Queries of one group are multiplied together.

    Rows are gathered as embeddings are, whose gradient is many times faster on a CPU than that of an index.
    """
    count_G = torch.zeros(len(rows_GMX), dtype=torch.long, device=group_Q.device)
    count_G.index_add_(0, group_Q, torch.ones_like(group_Q))  # bincount waits for a GPU
    blocks_G = (count_G + TOGETHER - 1) // TOGETHER
    order_Q = group_Q.argsort(stable=True)
    nth_Q = torch.arange(len(group_Q), device=group_Q.device) - (count_G.cumsum(0) - count_G)[group_Q[order_Q]]
    place_Q = torch.empty_like(order_Q)
    place_Q[order_Q] = ((blocks_G.cumsum(0) - blocks_G) * TOGETHER)[group_Q[order_Q]] + nth_Q
    group_b = torch.repeat_interleave(blocks_G)
    padded = query_QX.new_zeros(len(group_b) * TOGETHER, query_QX.shape[1]).index_copy(0, place_Q, query_QX)
    rows_bMX = F.embedding(group_b, rows_GMX.flatten(1)).unflatten(1, rows_GMX.shape[1:])
    found = torch.bmm(padded.view(len(group_b), TOGETHER, query_QX.shape[1]), rows_bMX.mT)
    return F.embedding(place_Q, found.flatten(0, 1))
