"""How long it takes to recommend: to one user alone, and to a batch of users.

A request is a user's history in and the best `TOP` items of the whole catalogue out: what `recommend` does, without
reading and writing. All workers rank together; the one user is the first worker's.
"""

from __future__ import annotations

import statistics
import time
from itertools import cycle, islice

from embeddings.workers import SLOW, Worker, gather_objects, total
from evaluation.ranking import CatalogueRanker, Scorer
from evaluation.results import Latency
from ingest.data.batch import Batch
from ingest.data.reader import Reader

TOP = 20
REQUESTS, BATCHES = 20, 3
"""How many are timed, after one that is not."""


def timed(scorer: Scorer, alone: Reader, together: Reader, worker: Worker, filter_seen: bool) -> Latency | None:
    """The median seconds of a request, and users a second in batches of `together`; every worker calls it.

    `alone` reads one user at a time; both are made with `after_last`. None where the first worker has no user.
    """
    worker.at("requests are timed", SLOW)  # the first may be compiled
    manifest = together.manifest
    ranker = CatalogueRanker(scorer, manifest.items, manifest.catalogue, worker, filter_seen)
    empty = together.builder.empty().to(worker.device)

    def seconds(batch: Batch) -> float:
        began = time.perf_counter()
        item_QK, _ = ranker.top(scorer.predict(batch).query, batch.seen, TOP)
        item_QK.cpu()
        return time.perf_counter() - began

    one = _some(alone, REQUESTS + 1, worker, empty) if worker.first else [empty] * (REQUESTS + 1)
    many = _some(together, BATCHES + 1, worker, empty)
    _, *taken = map(seconds, one)
    _, *batches = map(seconds, many)
    users = total(empty.weight_Q.new_tensor([sum(len(batch.target_Q) for batch in many[1:])]).double())
    has_user: list[bool] = gather_objects(len(one[0].target_Q) > 0)
    if not has_user[0]:
        return None
    return Latency(request=statistics.median(taken), users_per_second=float(users) / sum(batches))


def _some(reader: Reader, count: int, worker: Worker, empty: Batch) -> list[Batch]:
    """`count` batches, the same ones again where there are fewer."""
    found = [batch.to(worker.device) for batch, _ in islice(reader.epoch(0), count)]
    return list(islice(cycle(found or [empty]), count))
