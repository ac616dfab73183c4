"""Ranks the whole catalogue, sharded: each worker scores its own slice of the items, and only counts and the best K
travel. The result is that of sorting all scores in one place, with ties counted against the model.

    Q  targets of this worker     A  targets of all workers     V  items     v  items of this worker's slice

A scorer has the items in rows of an order of its own, in which slices are cut (evaluation/slices.py). A neural model's
rows are those of its item table, so that they are scored where they lie; items that it does not know lie behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from embeddings.sharding import rows_in_place
from embeddings.table_config import ITEM
from embeddings.workers import Worker, gather_rows
from evaluation.metrics import MISS
from evaluation.slices import CatalogueSlice
from ingest.data.batch import Batch, Lists
from ingest.features.feature import FIRST_VALUE
from trainer.recommender import Prediction, Query
from trainer.step import Step

SCORES_AT_ONCE = 2**22
"""Scores in memory at a time on a CPU: few, which stay in its caches."""
ON_GPU = 16
"""Times as many on a GPU."""
QUERIES_AT_ONCE = 16
"""At least, however many items there are: their rows are read once for all of these."""
EXACT = 2**24
"""Ones that single precision adds up exactly."""
ROWS_CONVERTED = 2**16
"""Rows of a half-precision table that are in single precision at a time."""


class Scorer(Protocol):
    """Anything that scores items for the targets of a batch."""

    def predict(self, batch: Batch) -> Prediction:
        """Its `query` is what is needed to score, one row a target: tensors [Q, ...]. They travel to all workers."""
        ...

    def scores(self, query: Query) -> Tensor:
        """Scores of this worker's slice for any worker's queries: tensors [A, ...] -> [A, v], which may be changed.

        A scorer that knows only what training does gives the slice's first columns, the known items, alone.
        """
        ...

    def item_to_row(self, item_N: Tensor) -> Tensor:
        """The rows of items; padding and unknown are in rows 0 and 1."""
        ...

    def row_to_item(self, row_N: Tensor) -> Tensor:
        """The items in rows."""
        ...


class NeuralScorer:
    """Dot products with the item table's rows. Every worker has to make its own at the same time.

    Rows that lie in slices already, as a row-wise table's do, are read where they are; others are fetched.
    """

    def __init__(self, step: Step, rows_at_once: int = 262_144) -> None:
        self.step, self.predict = step, step.predict
        self.slice = CatalogueSlice(step.manifest.items, step.manifest.catalogue, step.worker)
        self.parts = step.recommender.scores
        in_place = self.parts.only_rows and step.candidates.own_rows
        rows_vD = rows_in_place(step.parallel, ITEM, step.worker.workers) if in_place else None
        self.rows_vD, self.day_v = self._fetched(rows_at_once) if rows_vD is None else (rows_vD, None)

    @torch.no_grad()
    def _fetched(self, rows_at_once: int) -> tuple[Tensor, Tensor | None]:
        """The columns of the slice's known items but for their days, which are kept as numbers; with attributes, those
        of the others, too. Beside them one part is in memory at a time."""
        step, worker, attributes = self.step, self.step.worker, self.parts.attributes is not None
        row_v = self.slice.rows if attributes else self.slice.rows[: self.slice.known]
        others = step.manifest.catalogue - step.manifest.items if attributes else 0
        largest = -(-step.manifest.items // worker.workers) - (-others // worker.workers)
        rows_vX: Tensor | None = None
        days = []
        for offset in range(0, largest, rows_at_once):
            item_N = self.row_to_item(row_v[offset : offset + rows_at_once].to(worker.device))
            facts = step.candidates.facts(item_N)
            found = step.recommender.tables.rows({ITEM: step.candidates.rows(item_N), **facts.attributes})
            vectors_ND = self.parts.vectors(found.pop(ITEM), found)
            part_NX = self.parts.columns(vectors_ND, self.parts.labels(facts.labels, len(item_N)))
            if rows_vX is None:
                rows_vX = part_NX.new_empty(len(row_v), part_NX.shape[1]) if len(part_NX) < len(row_v) else part_NX
            rows_vX[offset : offset + len(part_NX)] = part_NX
            if facts.day_C is not None:
                days.append(facts.day_C)
        assert rows_vX is not None
        return rows_vX, torch.cat(days) if days else None

    def scores(self, query: Query) -> Tensor:
        """Products with the known items; where the query has candidates of its own, their probabilities are added."""
        query_AD, *candidates = query
        scores_av = self._products(query_AD)
        if not candidates:
            return scores_av
        others = len(self.slice) - scores_av.shape[1]
        item_AW, logit_AW = candidates
        return self._add(torch.nn.functional.pad(scores_av, (0, others), value=-torch.inf), item_AW, logit_AW)

    def _add(self, scores_av: Tensor, item_AW: Tensor, logit_AW: Tensor) -> Tensor:
        """log(exp score + sum of exp logit over the candidates that are the item), in place."""
        query_N, place_N, column_N = self.slice.entries(self.item_to_row(item_AW))
        logit_N = logit_AW[query_N, place_N]
        key_U, nth_N = torch.unique(query_N * scores_av.shape[1] + column_N, return_inverse=True)
        largest_U = scores_av.flatten()[key_U].scatter_reduce_(0, nth_N, logit_N, "amax")
        rest_U = largest_U.clamp(min=torch.finfo(scores_av.dtype).min)  # no difference of infinities
        sum_U = (scores_av.flatten()[key_U] - rest_U).exp_().index_add_(0, nth_N, (logit_N - rest_U[nth_N]).exp_())
        scores_av.view(-1)[key_U] = rest_U + sum_U.log_()
        return scores_av

    def _products(self, query_AX: Tensor) -> Tensor:
        query_AD = query_AX[:, : self.rows_vD.shape[1]]
        if self.day_v is not None:
            return self._with_rows(query_AD).add_(query_AX[:, query_AD.shape[1] :].index_select(1, self.day_v))
        return self._with_rows(query_AD)

    def _with_rows(self, query_AD: Tensor) -> Tensor:
        if self.rows_vD.dtype == query_AD.dtype:
            return query_AD @ self.rows_vD.T
        return torch.cat([query_AD @ rows.to(query_AD.dtype).T for rows in self.rows_vD.split(ROWS_CONVERTED)], dim=1)

    def item_to_row(self, item_N: Tensor) -> Tensor:
        return torch.where(item_N < self.step.manifest.items, self.step.spread.rows(item_N), item_N)

    def row_to_item(self, row_N: Tensor) -> Tensor:
        return torch.where(row_N < self.step.manifest.items, self.step.spread.indices(row_N), row_N)


def _at_least(scores_av: Tensor, value_a: Tensor) -> Tensor:
    """How many scores of each row are at least its value; `scores_av` is overwritten.

    In place and as floats, which a CPU compares and adds several times faster than it does booleans.
    """
    ones_av = scores_av.ge_(value_a[:, None])
    return sum(part.sum(dim=1, dtype=torch.float32).long() for part in ones_av.split(EXACT, dim=1))


def best_columns(scores_av: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K highest scores of each row and their columns, of equal scores the lower column first: two [a, min(K, v)].

    A partial selection; only rows whose ties reach beyond the K-th place are sorted whole.
    """
    k = min(k, scores_av.shape[1])
    score_am, column_am = scores_av.topk(min(k + 1, scores_av.shape[1]), dim=1)
    score_ak, column_ak = score_am[:, :k], column_am[:, :k]
    column_ak, order_ak = column_ak.sort(dim=1)
    score_ak, again_ak = score_ak.gather(1, order_ak).sort(dim=1, descending=True, stable=True)
    column_ak = column_ak.gather(1, again_ak)
    cut_a = (score_am[:, k:] == score_am[:, k - 1 : k]).any(dim=1)
    if cut_a.any():
        score_bv, column_bv = scores_av[cut_a].sort(dim=1, descending=True, stable=True)
        score_ak[cut_a], column_ak[cut_a] = score_bv[:, :k], column_bv[:, :k]
    return score_ak, column_ak


class CatalogueRanker:
    """Ranks and top K of a `Scorer` over all items, unknown and padding left out.

    `items`: rows of the known ones; `catalogue`: of all, as `CatalogueSlice` has them.
    """

    def __init__(self, scorer: Scorer, items: int, catalogue: int, worker: Worker, filter_seen: bool) -> None:
        self.scorer, self.catalogue, self.worker, self.filter_seen = scorer, catalogue, worker, filter_seen
        self.slice = CatalogueSlice(items, catalogue, worker)

    def ranks(self, query: Query, target_Q: Tensor, seen: Lists | None) -> Tensor:
        """The rank of each target, from 1; `MISS` where it can not be scored or is filtered out: [Q].

        Every worker calls it. Equal scores count as better than the target's. Raises `FloatingPointError` where a
        score is NaN.
        """
        query, sizes = self._gathered(query)
        target_A, _ = gather_rows(self.scorer.item_to_row(target_Q), sizes)
        better_A = torch.zeros(len(target_A), dtype=torch.int64, device=target_Q.device)
        missed_A = target_A < FIRST_VALUE
        for begin, scores_av in self._scored(query, seen):
            part = slice(begin, begin + len(scores_av))
            column_a = self.slice.columns(target_A[part])
            own_a = (column_a >= 0) & (column_a < scores_av.shape[1])
            value_a = scores_av.new_full((len(scores_av),), -torch.inf)
            value_a[own_a] = scores_av[own_a, column_a[own_a]]
            dist.all_reduce(value_a, op=dist.ReduceOp.MAX)
            count_a = _at_least(scores_av, value_a) - own_a.long()
            dist.all_reduce(count_a)
            better_A[part] = count_a
            missed_A[part] |= value_a == -torch.inf
        rank_A = torch.where(missed_A, MISS, better_A + 1)
        return rank_A.split(sizes)[self.worker.rank]

    def top(self, query: Query, seen: Lists | None, k: int) -> tuple[Tensor, Tensor]:
        """The K best items of each query and their scores, best first; every worker calls it: two [Q, K].

        Fewer than K items: the rest has item 0 and score -inf. Of equal scores the lower row comes first.
        """
        query, sizes = self._gathered(query)
        parts = [self._best(scores_av, k) for _, scores_av in self._scored(query, seen)]
        if not parts:
            device = query[0].device
            return torch.zeros(0, k, dtype=torch.int64, device=device), torch.zeros(0, k, device=device)
        row_AK, score_AK = (torch.cat(columns).split(sizes)[self.worker.rank] for columns in zip(*parts, strict=True))
        return self.scorer.row_to_item(row_AK), score_AK

    def _gathered(self, query: Query) -> tuple[Query, list[int]]:
        """All workers' queries, and how many each has."""
        first, sizes = gather_rows(query[0])
        return (first, *(gather_rows(part, sizes)[0] for part in query[1:])), sizes

    def _best(self, scores_av: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The rows and scores of the best K over all workers' slices of a chunk."""
        score_ak, column_ak = best_columns(scores_av, k)
        pad = k - score_ak.shape[1]
        score_ak = torch.nn.functional.pad(score_ak.float(), (0, pad), value=-torch.inf)
        row_ak = torch.nn.functional.pad(self.slice.rows_of(column_ak), (0, pad))
        scores_Ka, rows_Ka = (gather_rows(best_ak.T, [k] * self.worker.workers)[0] for best_ak in (score_ak, row_ak))
        rows_aK, order = rows_Ka.T.sort(dim=1)
        merged, order = scores_Ka.T.gather(1, order).sort(dim=1, descending=True, stable=True)
        chosen = rows_aK.gather(1, order)[:, :k]
        return chosen.masked_fill(merged[:, :k] == -torch.inf, 0), merged[:, :k]

    def _scored(self, query: Query, seen: Lists | None) -> Iterator[tuple[int, Tensor]]:
        """Chunks of all workers' queries: where the chunk begins, and its masked scores [a, v]."""
        seen_columns = self._seen(seen, query[0].device)
        most = SCORES_AT_ONCE * (ON_GPU if self.worker.device.type == "cuda" else 1)
        chunk = max(QUERIES_AT_ONCE, most // max(-(-self.catalogue // self.worker.workers), 1))
        for begin in range(0, len(query[0]), chunk):
            scores_av = self.scorer.scores(tuple(part[begin : begin + chunk] for part in query))
            if scores_av.numel() and scores_av.max().isnan():
                raise FloatingPointError("a score is NaN: the model has diverged")
            scores_av[:, : max(FIRST_VALUE - self.slice.begin, 0)] = -torch.inf
            if seen_columns is not None:
                column_N, query_N = seen_columns
                here = (query_N >= begin) & (query_N < begin + len(scores_av)) & (column_N < scores_av.shape[1])
                scores_av[query_N[here] - begin, column_N[here]] = -torch.inf
            yield begin, scores_av

    def _seen(self, seen: Lists | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Columns of items that any worker's users have seen, and the query each belongs to."""
        if seen is None or not self.filter_seen:
            return None
        lengths_A, _ = gather_rows(seen.lengths)
        row_N, _ = gather_rows(self.scorer.item_to_row(seen.values))
        column_N = self.slice.columns(row_N)
        own = column_N >= 0
        return column_N[own].to(device), torch.repeat_interleave(lengths_A)[own].to(device)
