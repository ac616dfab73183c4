"""Copying from the history: every place of the user's past is a candidate, so its item can be taken again.

    T  tokens     Q  targets     D  dimension     W  places of a target's history, padded
    b  sequences of a group (`trainer.attention.Layout`)     L  the longest of them     P  places that are asked for

The logit of place j for what comes after place k (pointer networks, arXiv 1506.03134; RepeatNet, arXiv 1812.02646):

    a_kj = q_k . m_j / sqrt(D) + u_k[how far back] + v_k[how long ago] + g_k

How far back is counted in different items, for an item's last place: the stack distance, by which a list of one's own
items is ordered; for its places before that, in places. q, u, v and g are linear in the model's query h_k, so that a
session's intent decides whether, and how far back, people return. The key m_j is made of the features of place j (the
item, the action, the seconds watched ...) by a linear layer, and by a hidden layer of that and of how often the item
has been taken there, so that a series of ten episodes can be over after ten; and of h_(j-1): what had been expected
there, so that a place is found that was reached from a state like today's.

What is copied is a place, not a row of a table: an item that the vocabulary lacks is copied like any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ingest.data.batch import Batch
from ingest.features.feature import FIRST_VALUE, PADDING
from trainer.attention import Layout
from trainer.device import sent
from trainer.scores.intents import Acting
from trainer.scores.pointers import Candidates, sum_exp
from trainer.softmax import Pointed

BACK = 4
"""Buckets of each doubling of how far back a place is."""
GAPS = 44
"""Buckets of time, one for each doubling of milliseconds; the last begins after 278 years."""


class HistoryPointer(nn.Module):
    """The candidates of the history. `width`: of a place's features; `items`: how many there are to rank."""

    def __init__(self, width: int, dimension: int, max_length: int, items: int, request: bool) -> None:
        """`request`: whether the time of the request is known; else time counts up to the last interaction."""
        super().__init__()
        self.request, self.dimension, self.max_length = request, dimension, max_length
        self.back = int(BACK * math.log2(max_length)) + 1
        self.sizes = [dimension, 2 * self.back, GAPS, 1]
        self.query = nn.Linear(dimension, sum(self.sizes))
        self.key = nn.Linear(width, dimension)
        self.often = nn.Embedding(self.back, dimension)
        self.mixed = nn.Sequential(nn.Linear(dimension, 2 * dimension), nn.GELU(), nn.Linear(2 * dimension, dimension))
        self.before = nn.Linear(dimension, dimension, bias=False)
        with torch.no_grad():
            _, back_weight, gap_weight, gate_weight = self.query.weight.split(self.sizes)
            _, back_bias, gap_bias, gate_bias = self.query.bias.split(self.sizes)
            for part in (back_weight, gap_weight, gate_weight, gap_bias):
                part.zero_()
            # the newest place first, and all of them together about as likely as the catalogue, whose scores begin at 0
            back_bias.copy_(-torch.arange(self.back).repeat(2) / BACK * math.log(2))
            gate_bias.fill_(math.log(max(items, 2)))

    def forward(
        self,
        query_TD: Tensor,
        features_TX: Tensor,
        batch: Batch,
        layout: Layout,
        listed: bool,
        acting: Acting | None = None,
    ) -> tuple[Pointed, Candidates | None]:
        """What the history gives each target, and, where they are to be `listed`, its candidates one by one."""
        asked_TX = self.query(query_TD)
        first_T1 = (batch.position_T == 0)[:, None]
        before_TD = torch.cat([query_TD[:1], query_TD[:-1]]).masked_fill(first_T1, 0)
        often_TD = self.often(self._bucket_of(times_before(batch)))
        place_TD = self.key(features_TX)
        key_TD = place_TD + self.mixed(place_TD + often_TD) + self.before(before_TD)
        if acting is not None:  # labels are products, too: further columns of the query and of the key
            asked_TX = asked_TX + acting.gates(asked_TX.shape[1], own=-1, same=self.dimension)
            asked_TX = torch.cat([acting.asked_NL * math.sqrt(self.dimension), asked_TX], dim=1)
            key_TD = torch.cat([acting.label_XL, key_TD], dim=1)
        target_T = torch.full_like(batch.item_T, PADDING).index_copy_(0, batch.target_position_Q, batch.target_Q)
        now_T = batch.request_time_T if self.request else batch.time_T
        assert now_T is not None
        numbers_T4 = torch.stack([batch.past_T, target_T, batch.time_T, now_T], dim=1)
        place_Q = sent(layout.place_T, query_TD.device)[batch.target_position_Q]
        groups = zip(*(layout.grouped(layout.take(x, 1), 1) for x in (asked_TX, key_TD, numbers_T4)), strict=True)
        sums, lists, begin = [], [], 0
        for (asked_bLX,), (key_bLD,), (numbers_bL4,) in groups:
            item_bL, target_bL, time_bL, now_bL = numbers_bL4.unbind(2)
            size, longest = item_bL.shape
            if not listed:  # most places are targets' then
                at_bP = torch.arange(longest, device=item_bL.device)[None]
                logit_bPL = self._logits(asked_bLX, key_bLD, item_bL, now_bL[:, :, None] - time_bL[:, None], at_bP)
                found = sum_exp(logit_bPL, target_bL[:, :, None] == item_bL[:, None])
                sums.append([part_bL.flatten() for part_bL in found])
                continue
            place_q = place_Q[(place_Q >= begin) & (place_Q < begin + size * longest)] - begin
            begin += size * longest
            at_bP, row_q = _rows(place_q, size, longest)
            asked_bPX = asked_bLX.take_along_dim(at_bP[:, :, None], 1)
            gap_bPL = now_bL.gather(1, at_bP)[:, :, None] - time_bL[:, None]
            logit_qL = self._logits(asked_bPX, key_bLD, item_bL, gap_bPL, at_bP).flatten(0, 1)[row_q]
            item_qL = item_bL[place_q // longest].masked_fill(logit_qL == -torch.inf, PADDING)
            sums.append(list(sum_exp(logit_qL, target_bL.flatten()[place_q, None] == item_qL)))
            lists.append(Candidates(item_qL, logit_qL).padded(self.max_length))
        all_P, target_P = (torch.cat(parts) for parts in zip(*sums, strict=True))
        if not listed:
            return Pointed(all_P.index_select(0, place_Q), target_P.index_select(0, place_Q)), None
        return Pointed(all_P, target_P), Candidates(
            torch.cat([part.item_QW for part in lists]), torch.cat([part.logit_QW for part in lists])
        )

    def _logits(self, asked_bPX: Tensor, key_bLD: Tensor, item_bL: Tensor, gap_bPL: Tensor, at_bP: Tensor) -> Tensor:
        """The logit of each place (last) for what comes after each of the places `at_bP`, -inf for those after it."""
        query_bPD, back_bPX, gap_bPG, gate_bP1 = asked_bPX.split([key_bLD.shape[2], *self.sizes[1:]], dim=2)
        # in single precision: the gate is large, and differences between places drown in its bf16
        back_bPX = back_bPX.float() + gate_bP1.float()
        back_bPL = back_bPX.gather(2, self._how_far_back(item_bL, at_bP))
        match_bPL = torch.bmm(query_bPD, key_bLD.mT).float()
        logit_bPL = torch.add(back_bPL, match_bPL, alpha=1 / math.sqrt(self.dimension))
        place_L = torch.arange(item_bL.shape[1], device=item_bL.device)
        logit_bPL = logit_bPL + gap_bPG.gather(2, time_bucket(gap_bPL))
        hidden_bPL = (at_bP[:, :, None] < place_L) | (item_bL < FIRST_VALUE)[:, None]
        return logit_bPL.masked_fill(hidden_bPL, -torch.inf)

    def _how_far_back(self, item_bL: Tensor, at_bP: Tensor) -> Tensor:
        """The bucket of each place (last) as seen from the places `at_bP`; any one for those after them."""
        longest, device = item_bL.shape[1], item_bL.device
        place_L, at_bP1 = torch.arange(longest, device=device), at_bP[:, :, None]
        bucket_L = self._bucket_of(place_L)
        item_sorted_bL, order_bL = item_bL.sort(dim=1, stable=True)
        same_bL = torch.nn.functional.pad(item_sorted_bL[:, 1:] == item_sorted_bL[:, :-1], (0, 1))
        next_bL = torch.where(same_bL, order_bL.roll(-1, dims=1), longest)
        again_bL = torch.empty_like(order_bL).scatter_(1, order_bL, next_bL)  # the next place of the same item
        last_bPL = (again_bL[:, None] > at_bP1) & (place_L <= at_bP1)
        count_bPL = last_bPL.cumsum(dim=2, dtype=torch.int32)
        items_bPL = count_bPL[:, :, -1:] - count_bPL  # different items after each place
        ago_bPL = (at_bP1 - place_L).clamp_(min=0)
        return torch.where(last_bPL, bucket_L[items_bPL], bucket_L[ago_bPL] + self.back)

    @staticmethod
    def _bucket_of(count_N: Tensor) -> Tensor:
        """`BACK` buckets for each doubling of the count and one, from 0 to `back` - 1."""
        return ((count_N + 1).double().log2() * BACK).long()


def _rows(place_q: Tensor, sequences: int, longest: int) -> tuple[Tensor, Tensor]:
    """The places that are asked for in each of a group's sequences, padded: [b, P]; and where each is among them."""
    sequence_q = place_q // longest
    count_b = torch.bincount(sequence_q, minlength=sequences)
    nth_q = torch.arange(len(place_q), device=place_q.device) - (count_b.cumsum(0) - count_b)[sequence_q]
    most = int(count_b.max())
    row_q = sequence_q * most + nth_q
    at_bP = place_q.new_zeros(sequences * most).index_copy_(0, row_q, place_q % longest)
    return at_bP.view(sequences, most), row_q


def times_before(batch: Batch) -> Tensor:
    """How often the item of each token is among its sequence's tokens before it: [T]."""
    sequence_T = sent(torch.repeat_interleave(batch.lengths_B), batch.item_T.device)
    key_T, order_T = ((batch.past_T.max() + 1) * sequence_T + batch.past_T).sort(stable=True)
    nth_T = torch.arange(len(key_T), device=key_T.device) - torch.searchsorted(key_T, key_T)
    return torch.empty_like(order_T).scatter_(0, order_T, nth_T)


def time_bucket(span: Tensor) -> Tensor:
    """0 for spans of time up to 0, then one more for each doubling of milliseconds, up to `GAPS` - 1: int64."""
    exponent = (span.clamp(min=0) + 1).float().view(torch.int32) >> 23  # of the float: 127 for 1
    return (exponent - 127).clamp_(max=GAPS - 1).long()
