"""What others took lately after the user's last item, mixed with what is taken lately at all.

    score(i) = weight * c_i / (sum of c + 1) + (1 - weight) * t_i / (sum of t + 1)

c_i counts the newest `length` times that anyone took an item after the user's last one, fading by half in `half_life`;
t_i are the events of `trending` in the last `span`, and a share of one by popularity. Both know what lies before the
request, or, frozen, before all of them: a Markov chain of the last hour, for logs whose items do not live much longer.

    Q  targets     R  successions of a target's last item     N  entries of this worker's items
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from evaluation.baselines.base import BaselineScorer, OneOrMore, Positive, single
from evaluation.baselines.trending import LatelyConfig, Trending
from ingest.data.activity import BUCKET, of_buckets
from ingest.data.successions import Successions
from ingest.durations import parse_duration
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from ingest.data.batch import Batch
    from trainer.recommender import Query


@register
class FollowedConfig(LatelyConfig):
    kind: Literal["followed"] = "followed"
    weight: OneOrMore[Annotated[float, Field(gt=0, le=1)]] = 0.5
    """Of what followed the last item, against what is taken most."""
    half_life: OneOrMore[Annotated[str, AfterValidator(of_buckets)]] = "1h"
    """After which a time that an item followed counts half."""
    length: OneOrMore[Positive] = 256
    """The newest times that anyone took an item after the last one."""

    def scorer(self, data: Prepared) -> Followed:
        span, live = parse_duration(single(self.span)) // BUCKET, single(self.live)
        trending = Trending(data, span, live, single(self.by))
        half_life = parse_duration(single(self.half_life))
        return Followed(data, trending, single(self.weight), half_life, single(self.length))


class Followed(BaselineScorer):
    """A query is that of `trending`, [Q] twice, what came after the last item, and what each counts: [Q, R] twice."""

    def __init__(self, data: Prepared, trending: Trending, weight: float, half_life: int, length: int) -> None:
        self.slice, self.trending, self.weight = data.slice, trending, weight
        self.half_life, self.length = half_life, length
        self.successions = Successions.load(data.url, data.manifest.catalogue, trending.total)

    def query(self, batch: Batch) -> Query:
        import torch
        from torch.nn.functional import pad

        until_Q = self.trending.until(batch)
        last_Q = batch.past_T[batch.target_position_Q]
        found = self.successions.newest(last_Q.cpu().numpy(), until_Q.cpu().numpy(), self.length)
        item_QR, time_QR = (torch.from_numpy(values).to(last_Q.device) for values in found)
        count_QR = (0.5 ** ((until_Q[:, None] - time_QR).double() / self.half_life)).masked_fill(item_QR <= 0, 0)
        more = (0, self.length - item_QR.shape[1])  # the same width on all workers
        return *self.trending.query(batch), pad(item_QR, more), pad(count_QR, more)

    def scores(self, query: Query) -> Tensor:
        import torch
        import torch.distributed as dist

        bucket_Q, value_Q, item_QR, count_QR = query
        scores_Qv = self.trending.scores((bucket_Q, value_Q))
        sum_Q = self.trending.totals((bucket_Q, value_Q)).double()
        dist.all_reduce(sum_Q)
        scores_Qv *= ((1 - self.weight) / (sum_Q + 1))[:, None]
        query_N, place_N, column_N = self.slice.entries(item_QR)
        share_QR = count_QR * (self.weight / (count_QR.sum(dim=1, keepdim=True) + 1))
        flat_N = query_N * scores_Qv.shape[1] + column_N
        scores_Qv.view(-1).index_add_(0, flat_N, share_QR[query_N, place_N].to(torch.float64))
        return scores_Qv
