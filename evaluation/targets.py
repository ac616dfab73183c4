"""The targets of an evaluation as Parquet: targets/<model>/part-<worker>.parquet in the run's folder, a row a target.

    user           the log's own id
    place          int64: the target's place among all interactions of its user, from 0
    time           timestamp of the target, or int64 where the log has positions
    item           the log's own id
    rank           int64: its place among the whole catalogue, from 1; 0 for a miss (unknown, or filtered out as seen)
    again          bool: whether its user had the item before
    count          int64: how often training has the item
    new_session    bool: whether the one before is longer ago than `evaluate.session`; null where the log has positions
    hit_<intent>   bool, for models with intents: whether the likeliest label is a true one; null without a true one

Rows are in the order of the users, and each user's by place. Workers go through their users in the stored order and a
row group has a fixed number of them, so that row group g of a worker's file holds the same users for every model,
whatever its reader's settings. A comparison takes one row group of every model at a time, pairs their rows by user and
place, and needs no more memory than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from embeddings.workers import Worker
from evaluation.metrics import Ints
from evaluation.parquet import PartWriter, part
from ingest.data.batch import Batch
from ingest.data.manifest import Manifest
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from ingest.storage import exists, join, open_file

KEY = ["user", "place"]
Hits: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Of each intent whether the likeliest label is a true one, and whether there is a true one: two bools [Q]."""


class TargetWriter:
    """Writes one model's targets to `part`. `user`: the type of the log's user ids; `ids`: its item ids, by index;
    `counts`: how often training has each item; `session`: milliseconds after which a session has ended."""

    def __init__(
        self, part: PartWriter, manifest: Manifest, user: pa.DataType, ids: pa.Array, counts: Ints, session: int
    ) -> None:
        self.part, self.user, self.ids, self.counts, self.session = part, user, ids, counts, session
        self.time = pa.timestamp("ms", "UTC") if manifest.time_unit == "time" else pa.int64()
        self.last: object = None
        """The user of the last row, which may go on in the next batch."""

    def add(self, batch: Batch, ranks: Ints, hits: Hits) -> None:
        """The targets of a batch and their ranks, int64 [Q]."""
        assert batch.target_time_Q is not None
        assert batch.target_place_Q is not None
        row, place, time, item = (
            tensor.cpu().numpy() for tensor in (batch.row_Q, batch.target_place_Q, batch.target_time_Q, batch.target_Q)
        )
        columns = {
            "user": pa.array([batch.users[number] for number in row], type=self.user),
            "place": pa.array(place),
            "time": pa.array(time).cast(self.time),
            "item": self.ids.take(pa.array(item, mask=item < FIRST_VALUE)),
            "rank": pa.array(ranks),
            "again": pa.array(_again(batch).cpu().numpy()),
            "count": pa.array(np.where(item < FIRST_VALUE, 0, self.counts[item])),
            "new_session": self._new_session(batch),
        }
        for name, (hits_Q, known_Q) in hits.items():
            columns[f"hit_{name}"] = pa.array(hits_Q.cpu().numpy(), mask=~known_Q.cpu().numpy())
        order = np.lexsort((place, row))
        begins = np.array([user != before for before, user in pairwise([self.last, *batch.users])], dtype=np.int64)
        self.last = batch.users[-1]
        self.part.add(pa.table(columns).take(pa.array(order)), (begins.cumsum() - 1)[row[order]], int(begins.sum()))

    def _new_session(self, batch: Batch) -> pa.Array:
        assert batch.target_time_Q is not None
        if pa.types.is_integer(self.time):
            return pa.nulls(len(batch.target_Q), pa.bool_())
        gap_Q = batch.target_time_Q - batch.time_T[batch.target_position_Q]
        return pa.array((gap_Q > self.session).cpu().numpy())


def _again(batch: Batch) -> Tensor:
    """Whether each target's user had its item, however long ago: bool [Q]."""
    assert batch.seen is not None
    query_N = torch.repeat_interleave(batch.seen.lengths)
    same_N = (batch.seen.values == batch.target_Q[query_N]) & (batch.seen.values >= FIRST_VALUE)
    return torch.zeros_like(batch.target_Q).index_add_(0, query_N, same_N.long()) > 0


def paired(url: str, models: list[str], worker: Worker) -> Iterator[tuple[Ints, dict[str, Ints], pl.DataFrame]]:
    """The targets that this worker wrote, a row group at a time: a number for each one's user, its ranks by model, and
    what else the first model's file has of them but time and item.

    `url`: the folder of all models' targets. Raises `InputError` where the models' targets are not the same ones.
    """
    paths = {model: part(join(url, model), worker.rank) for model in models}
    if not any(map(exists, paths.values())):
        return
    with ExitStack() as stack:
        files = {model: pq.ParquetFile(stack.enter_context(open_file(path))) for model, path in paths.items()}
        for group in range(max(file.num_row_groups for file in files.values())):
            names = [name for name in files[models[0]].schema_arrow.names if name not in ("time", "item")]
            columns = {model: names if model == models[0] else [*KEY, "rank"] for model in models}
            tables = {model: _read(file, group, columns[model], paths[model]) for model, file in files.items()}
            yield *_joined(tables, paths), tables[models[0]]


def _read(file: pq.ParquetFile, group: int, columns: list[str], path: str) -> pl.DataFrame:
    if group >= file.num_row_groups:
        raise _different(path)
    table = pl.from_arrow(file.read_row_group(group, columns=columns))
    assert isinstance(table, pl.DataFrame)
    return table


def _joined(tables: dict[str, pl.DataFrame], paths: dict[str, str]) -> tuple[Ints, dict[str, Ints]]:
    first, *others = tables
    joined = tables[first].select(*KEY, pl.col("rank").alias("0"))
    for number, other in enumerate(others, 1):
        ranks = tables[other].select(*KEY, pl.col("rank").alias(f"{number}"))
        joined = joined.join(ranks, on=KEY, how="inner", validate="1:1", maintain_order="left")
        if not len(joined) == len(tables[first]) == len(ranks):
            raise _different(paths[other])
    numbers = joined["user"].rle_id().cast(pl.Int64).to_numpy()
    return numbers, {model: joined[f"{number}"].to_numpy() for number, model in enumerate(tables)}


def _different(path: str) -> InputError:
    return InputError(
        f"{path}: holds other targets than the other models' files beside it, so that models cannot be compared: "
        "a shard may have been set aside while one of them was evaluated; evaluate again"
    )
