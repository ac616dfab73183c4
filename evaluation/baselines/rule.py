"""What can be known on a made log: items by their probability under its hidden rule. No competitor of other models.

    knows: intent    the next intent itself, and whether it was kept: the ceiling of every model
    knows: tastes    the user's true tastes and the intent of the event before, not the next one
    knows: log       only what the log shows before the request, the request's time, and the rule

docs/simulation.md has the rule, and what the last one approximates. The log's events are held in memory; a batch's
users are replayed, or filtered, when it is asked for.

    Q  targets     v  items of this worker's slice
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from evaluation.baselines.base import BaselineConfig, BaselineScorer
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from ingest.storage import absolute
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.baselines.base import Prepared
    from evaluation.rule.answers import Answers
    from evaluation.rule.filter import History
    from ingest.arrays.jagged import Integers
    from ingest.data.batch import Batch
    from ingest.data.schema import DataConfig
    from trainer.recommender import Query
    from trainer.train_config import TrainConfig

LISTS = ("listed", "probability")
EVENTS_AT_ONCE = 2**14
"""Events that are filtered together: 800 numbers each."""
KNOWN = {
    "intent": "the rule and the next intent",
    "tastes": "the rule, the user's tastes and the intent before",
    "log": "the rule and what the log shows before",
}


@register
class RuleConfig(BaselineConfig):
    kind: Literal["rule"] = "rule"
    knows: Literal["intent", "tastes", "log"] = "log"
    """Beside the rule: the target's intent; the user's tastes and the intent before; or what the log shows before."""
    log: str | None = None
    """Folder of the log that `intentrec simulate` has made; by default that of the run."""
    oracle: ClassVar[bool] = True

    @field_validator("log")
    @classmethod
    def _anywhere(cls, value: str | None) -> str | None:
        return None if value is None else absolute(value)

    @property
    def inputs(self) -> str:
        return KNOWN[self.knows]

    def check(self, data: DataConfig, train: TrainConfig) -> None:
        if data.time_unit == "position":
            raise ValueError("kind: rule needs real times, not time_unit position")
        if data.events is not None and self.log is None:
            raise ValueError("log: kind rule takes the folder of a log that `intentrec simulate` has made")

    def scorer(self, data: Prepared) -> RuleScorer:
        return RuleScorer(data, self)


class RuleScorer(BaselineScorer):
    """Probabilities of this worker's items. A query is `evaluation.rule.answers.Answers`, a tensor each field."""

    def __init__(self, data: Prepared, config: RuleConfig) -> None:
        from evaluation.rule.answers import Slice
        from evaluation.rule.cells import Cells
        from evaluation.vocabulary import values
        from ingest.sources.simulate_truth import MadeLog

        folder = config.log or data.log
        if not folder:
            raise InputError(f"{data.url}: was not made by `intentrec simulate`, whose rule a model of kind rule knows")
        self.log, self.knows, self.url, self.device = MadeLog(folder), config.knows, data.url, data.worker.device
        self.cells, self.columns = Cells(self.log.pools), data.slice
        ids = values(data.url, "item").slice(FIRST_VALUE).to_pylist()
        items = self.log.pools.items
        if not all(isinstance(found, int) and 0 < found <= items for found in ids):
            raise self._other("has other items than")
        self.item_V = np.concatenate([np.full(FIRST_VALUE, -1), np.array(ids, np.int64) - 1])
        self.row_N = np.zeros(items + 1, np.int64)  # the last place is that of item -1
        self.row_N[self.item_V[FIRST_VALUE:]] = np.arange(FIRST_VALUE, len(self.item_V))
        self.slice = Slice(self.cells, self.item_V[data.slice.rows.numpy()])

    def _other(self, how: str) -> InputError:
        return InputError(f"{self.url}: {how} {self.log.folder}, the made log whose rule is known: prepare it again")

    def query(self, batch: Batch) -> Query:
        import torch

        from evaluation.rule.answers import Answers
        from evaluation.rule.filter import History

        event_Q, user_Q = self._events(batch)
        place_Q = event_Q - self.log.offsets[user_Q]
        user_U, number_Q = np.unique(user_Q, return_inverse=True)
        end_U = np.zeros(len(user_U), np.int64)
        np.maximum.at(end_U, number_Q, place_Q + 1)
        found: dict[str, np.ndarray] = {}
        for begin, end in _blocks(end_U):
            rows = np.flatnonzero((number_Q >= begin) & (number_Q < end))
            history = History(self.log, self.cells, user_U[begin:end], end_U[begin:end])
            part = self._answers(history, history.rows(number_Q[rows] - begin, place_Q[rows]))
            for name, value in vars(part).items():
                found.setdefault(name, np.empty((len(event_Q), *value.shape[1:]), value.dtype))[rows] = value
        found = found or vars(Answers.none(self.cells))
        found["listed"] = self.row_N[found["listed"]]
        return tuple(torch.from_numpy(found[name]).to(self.device) for name in Answers.__dataclass_fields__)

    def _events(self, batch: Batch) -> tuple[Integers, Integers]:
        """The log's event and user of each target, two (Q,)."""
        assert batch.target_time_Q is not None
        log, users = self.log, len(self.log.offsets) - 1
        if not all(isinstance(user, int) and 0 < user <= users for user in batch.users):
            raise self._other("has other users than")
        user_Q = np.array(batch.users, np.int64)[batch.row_Q.cpu().numpy()] - 1
        time_Q, item_Q = batch.target_time_Q.cpu().numpy(), self.item_V[batch.target_Q.cpu().numpy()]
        event_Q = np.empty(len(user_Q), np.int64)
        for row, (user, time) in enumerate(zip(user_Q.tolist(), time_Q.tolist(), strict=True)):
            begin, end = log.offsets[user : user + 2]
            event_Q[row] = min(begin + np.searchsorted(log.time[begin:end], time), end - 1)
        same = log.time[event_Q] == time_Q
        if not (same & ((item_Q < 0) | (log.item[event_Q] == item_Q))).all():
            raise self._other("has other events than")
        return event_Q, user_Q

    def _answers(self, history: History, asked: Integers) -> Answers:
        from evaluation.rule.answers import answers
        from evaluation.rule.beliefs import Learned
        from evaluation.rule.filter import after, drawn, filtered

        requests = history.requests.take(asked)
        if self.knows == "log":
            outlook = filtered(history, Learned(len(history.users), self.log.config.user), asked)
        elif self.knows == "tastes":
            before = self.log.intents.take(history.event[asked] - 1)
            outlook = after(before, self.log.tastes.take(history.users[history.rank[asked]]), requests)
        else:
            outlook = drawn(self.log.intents.take(history.event[asked]))
        return answers(self.cells, requests, outlook)

    def scores(self, query: Query) -> Tensor:
        import torch

        from evaluation.rule.answers import Answers

        listed_QL, probability_QL = (query[list(Answers.__dataclass_fields__).index(name)] for name in LISTS)
        found = Answers(*(part.cpu().numpy() for part in query))
        scores_Qv = torch.from_numpy(self.slice.probability(found)).to(self.device)
        query_N, place_N, column_N = self.columns.entries(listed_QL)
        return scores_Qv.index_put_((query_N, column_N), probability_QL[query_N, place_N], accumulate=True)


def _blocks(end_U: Integers) -> Iterator[tuple[int, int]]:
    """Users, from one to before another, who have `EVENTS_AT_ONCE` events together, or are one alone."""
    begin, events = 0, 0
    for user, count in enumerate(end_U.tolist()):
        if events and events + count > EVENTS_AT_ONCE:
            yield begin, user
            begin, events = user, 0
        events += count
    if events:
        yield begin, len(end_U)
