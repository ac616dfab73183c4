"""What others took lately after the user's last item: each such time is a candidate, so often counts often.

    Q  targets     R  the newest successions of a target's last item, padded     U  different items of a batch's
    D  dimension   K  width of the match

Session-based neighbours of length one, as of the moment of the request (`ingest.data.successions`). The logit of an
item i that followed the target's last item some time ago:

    b = q_q . k_i / sqrt(K) + u_q[how long ago] + g_q

q, u and g are linear in the model's query, k in the candidate's vector. The probabilities of an item's candidates are
added, so with u alone it is a count of transitions that fades, in which each query chooses how fast. K is small: each
candidate has a key of its own, and all of them together are the largest tensor of the part, [Q, R, K].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.data.successions import Successions
from ingest.features.feature import FIRST_VALUE
from trainer.distinct import distinct
from trainer.scores.history import GAPS, time_bucket
from trainer.scores.pointers import Candidates, sum_exp
from trainer.softmax import Pointed

MATCH = 16
"""K."""


@dataclass(frozen=True)
class Followers:
    """What came after the last items of a batch's targets."""

    item_U: Tensor
    """The different items, padding among them."""
    place_QR: Tensor
    """Where each target's are among them."""
    age_QR: Tensor
    """How long before the request, in milliseconds."""

    @classmethod
    def of(cls, successions: Successions, last_Q: Tensor, time_Q: Tensor, until_Q: Tensor, size: int) -> Followers:
        """Of requests at `time_Q`, in milliseconds, that know what came before `until_Q`; the newest `size` each."""
        found = successions.newest(last_Q.cpu().numpy(), until_Q.cpu().numpy(), size)
        after_QR, then_QR = (torch.from_numpy(values).to(last_Q.device) for values in found)
        item_U, place_QR = distinct(after_QR)
        return cls(item_U, place_QR, time_Q[:, None] - then_QR)


class TransitionPointer(nn.Module):
    """The candidates that followed. `items`: how many there are to rank; `size`: of them for a target, at most."""

    def __init__(self, dimension: int, items: int, size: int) -> None:
        super().__init__()
        self.sizes, self.size = [MATCH, GAPS, 1], size
        self.query = nn.Linear(dimension, sum(self.sizes))
        self.key = nn.Linear(dimension, MATCH, bias=False)
        with torch.no_grad():
            self.query.weight[MATCH:] = 0
            self.query.bias[MATCH:] = 0
            # all of them together about as likely as the catalogue, whose scores begin at 0
            self.query.bias[-1] = math.log(max(items / size, 2))

    def forward(
        self, query_QD: Tensor, candidates_UD: Tensor, followers: Followers, target_Q: Tensor, listed: bool
    ) -> tuple[Pointed, Candidates | None]:
        """What they give each target, and, where they are to be `listed`, its candidates one by one."""
        match_QK, ago_QG, gate_Q1 = self.query(query_QD).split(self.sizes, dim=1)
        key_QRK = F.embedding(followers.place_QR, self.key(candidates_UD))
        logit_QR = torch.bmm(key_QRK, match_QK[:, :, None])[:, :, 0].float() / math.sqrt(MATCH)
        logit_QR = logit_QR + ago_QG.float().gather(1, time_bucket(followers.age_QR)) + gate_Q1.float()
        item_QR = followers.item_U[followers.place_QR]
        logit_QR = logit_QR.masked_fill(item_QR < FIRST_VALUE, -torch.inf)
        pointed = Pointed(*sum_exp(logit_QR, item_QR == target_Q[:, None]))
        return pointed, Candidates(item_QR, logit_QR).padded(self.size) if listed else None
