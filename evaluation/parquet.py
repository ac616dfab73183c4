"""One worker's Parquet file of many users, written in row groups of the same number of them: bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.workers import Worker
from evaluation.metrics import Ints
from ingest.storage import join, open_file

ROW_GROUP = 16_384
"""Users of a row group."""


def part(url: str, rank: int) -> str:
    """The file of the worker `rank` in the folder `url`."""
    return join(url, f"part-{rank:05d}.parquet")


class PartWriter:
    """Writes tables to the file `path`, which is open while `stack` is."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.path, self.stack = path, stack
        self.users = 0
        """Written so far, or waiting to be."""
        self.tables: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table, user_N: Ints, users: int) -> None:
        """Rows of the next `users` users; `user_N`: which of them each row is of, from 0, rising, or -1 where the user
        before goes on, who stays in one row group."""
        goes_on, first = int(np.searchsorted(user_N, 0)), 0
        if goes_on:
            self.tables.append(table.slice(0, goes_on))
        while first < users:
            if self.users % ROW_GROUP == 0:
                self.write()
            end = min(users, first + ROW_GROUP - self.users % ROW_GROUP)
            begin_row, end_row = np.searchsorted(user_N, [first, end]).tolist()
            self.tables.append(table.slice(begin_row, end_row - begin_row))
            self.users += end - first
            first = end

    def write(self) -> None:
        """Write what is waiting, as a row group."""
        if not self.tables:
            return
        whole = pa.concat_tables(self.tables)
        self.tables = []
        if self.writer is None:
            file = self.stack.enter_context(open_file(self.path, "wb"))
            self.writer = self.stack.enter_context(pq.ParquetWriter(file, whole.schema, compression="zstd"))
        self.writer.write_table(whole, row_group_size=max(whole.num_rows, 1))


@contextmanager
def part_writer(url: str, worker: Worker) -> Iterator[PartWriter]:
    """This worker's file in the folder `url`; it appears when it is complete, and only where there are users."""
    with ExitStack() as stack:
        writer = PartWriter(part(url, worker.rank), stack)
        yield writer
        writer.write()
