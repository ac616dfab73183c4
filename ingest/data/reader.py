"""Streams a prepared data set's shards as batches, in the order that `ingest.data.order` decides.

A shuffle block's rows are shuffled together and cut into batches of about `tokens` tokens. A worker reads only its own
row groups; one block and what is read ahead of the next are in memory. Threads read row groups, and put batches
together, ahead of the consumer; what is left for its own thread is to join a block's parts, once for millions of
tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice, pairwise
from typing import TypeAlias, TypeVar

import numpy as np

from ingest.data.batch import Batch
from ingest.data.builder import BatchBuilder
from ingest.data.cutting import Parts
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest, Shard, SplitName
from ingest.data.order import EpochOrder, Position, Remaining, ShuffleBlock
from ingest.data.reader_config import ReaderConfig
from ingest.data.requests import Requests
from ingest.data.shards import Shards, Skipped, StoredRows

BUILT_TOGETHER = 65_536
"""Tokens of the batches that are built at once, about: some of the work is the same for few tokens and many."""

BUILDERS = 2
"""Threads that put batches together."""

T = TypeVar("T")
Build: TypeAlias = tuple[Future[list[Batch]], list[Remaining]]
"""Batches that are being built together, and what is left after each."""


class Reader:
    """One worker's stream of batches of one split.

    `epoch` yields `(batch, remaining)`: the batch and what this worker has left once it is consumed.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        items: ItemTable,
        split: SplitName,
        config: ReaderConfig,
        *,
        rank: int = 0,
        workers: int = 1,
        seed: int = 0,
        merged: int = 1,
        evaluate: bool = False,
        after_last: bool = False,
        features: bool = True,
        moment: int | None = None,
        requests: Requests | None = None,
    ) -> None:
        """`merged`: a batch holds so many of those that it would be cut into.

        `evaluate`: in the stored order, all targets of long rows, with users and seen items.

        `after_last`: likewise, but with what comes after each row's last interaction as its one target, asked for at
        `moment`, or by one of `requests`, and then of their users alone. `features`: whether batches hold features and
        intents; without, their columns are not read.
        """
        self.manifest, self.config, self.split = manifest, config, split
        self.rank, self.workers, self.merged = rank, workers, merged
        self.shards: list[Shard] = manifest.shards[split]
        self.evaluate = evaluate = evaluate or after_last
        self.builder = BatchBuilder(
            manifest,
            items,
            config.max_length,
            config.windows or evaluate,
            with_seen=evaluate,
            after_last=after_last,
            features=features,
            moment=moment,
            requests=requests,
        )
        self.columns = ["user"] * evaluate + ["targets", "item", "time"] + ["duration"] * manifest.has_duration
        self.columns += [feature.name for feature in self.builder.features if feature.of == "event"]
        self.source = Shards(
            url, manifest, self.shards, self.columns, config.retry_seconds, skip=config.on_bad_shard == "skip"
        )
        self.order = EpochOrder(self.shards, config.shuffle_buffer, rank, workers, None if evaluate else seed)
        self.skipped: list[Skipped] = []
        """Row groups that were set aside so far."""

    def epoch(self, epoch: int, position: Position | None = None) -> Generator[tuple[Batch, Remaining], None, None]:
        """The batches of `epoch`, from its beginning or from `position`."""
        with closing(ahead(self._builds(epoch, self.blocks(epoch, position)), BUILDERS)) as builds:
            for batches, remaining in builds:
                yield from zip(batches.result(), remaining, strict=True)

    def blocks(self, epoch: int, position: Position | None = None) -> Sequence[ShuffleBlock]:
        """This worker's shuffle blocks of `epoch`, or of what `position` says is left of it."""
        return self.order.blocks(epoch) if position is None else position.dealt(self.workers, self.shards)[self.rank]

    def own_rows(self, epoch: int = 0) -> int:
        """How many rows this worker reads in `epoch`."""
        groups = chain.from_iterable(block.row_groups for block in self.blocks(epoch))
        return sum(self.shards[shard].row_groups[group][0] for shard, group in groups)

    def rows(self) -> Iterator[StoredRows]:
        """The rows of every worker as they are stored, a shuffle block at a time, in the stored order."""
        yield from (rows for rows in self._read(self.order.stored()) if len(rows))

    def _builds(self, epoch: int, blocks: Sequence[ShuffleBlock]) -> Generator[Build, None, None]:
        """The batches as they are being built, several at a time."""
        with ThreadPoolExecutor(BUILDERS, "build") as pool, closing(self._read(blocks)) as read:
            for number, rows in enumerate(read):
                if not len(rows):
                    continue
                parts = self._parts(rows)
                parts = parts.take(self.order.rows(epoch, blocks[number], len(parts)))
                if not len(parts):
                    continue
                begun, last = blocks[number].consumed, min(blocks[number].until or len(parts), len(parts))
                cuts = [begun, *(cut for cut in self._cuts(parts) if begun < cut < last)]
                batches = list(pairwise([*cuts[:: self.merged], last])) if begun < last else []
                for first in range(0, len(batches), self._together):
                    chosen = batches[first : first + self._together]
                    remaining = [
                        Remaining(blocks, number, end if end < last else None, last, begin) for begin, end in chosen
                    ]
                    taken = [parts.take(np.arange(begin, end)) for begin, end in chosen]
                    yield pool.submit(self.builder.build_all, rows, taken), remaining

    @property
    def _together(self) -> int:
        """Batches that are built at once; one when evaluating, where seen items, not tokens, are what takes memory."""
        return 1 if self.evaluate else max(1, BUILT_TOGETHER // (self.config.tokens * self.merged))

    def _parts(self, rows: StoredRows) -> Parts:
        """The rows of a block, those that are long for a batch in parts; with requests those alone that have one."""
        parts = self.builder.cutting.parts(rows.lengths, rows.targets, self.config.tokens, self.evaluate)
        if (requests := self.builder.requests) is None:
            return parts
        return parts.take(np.flatnonzero(requests.places([rows.users[row] for row in parts.row_P]) >= 0))

    def _cuts(self, parts: Parts) -> list[int]:
        """Places at which a block's parts are cut into batches of about the same number of tokens."""
        total = np.cumsum(self.builder.cutting.cost(parts, self.config.tokens, self.evaluate))
        count = max(1, -(-int(total[-1]) // self.config.tokens))
        inner = np.searchsorted(total, np.arange(1, count) * (total[-1] / count))
        return np.unique([0, *np.clip(inner, 1, len(parts) - 1), len(parts)]).tolist()

    def _read(self, blocks: Iterable[ShuffleBlock]) -> Generator[StoredRows, None, None]:
        """The rows of each block, while the next one's are being read, `fetch` runs at a time."""
        pool = ThreadPoolExecutor(self.config.fetch, "fetch")
        try:
            reads = ([pool.submit(self.source.read, *run) for run in block.runs()] for block in blocks)
            for reading in ahead(reads, 1):
                yield self._joined(reading)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _joined(self, reading: list[Future[list[StoredRows | Skipped]]]) -> StoredRows:
        """What is whole of a block; the list is emptied, so that the parts are freed when they are joined."""
        found: list[StoredRows | Skipped] = []
        while reading:
            found += reading.pop(0).result()
        self.skipped += [part for part in found if isinstance(part, Skipped)]
        return StoredRows.concat([part for part in found if isinstance(part, StoredRows)])


def ahead(started: Generator[T, None, None], number: int) -> Generator[T, None, None]:
    """The same, but each is given when the `number` after it are started."""
    with closing(started):
        waiting = deque(islice(started, number))
        while waiting:
            waiting.extend(islice(started, 1))
            yield waiting.popleft()
