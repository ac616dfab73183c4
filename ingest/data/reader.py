"""Streams a prepared data set's shards as batches, in an order that (seed, epoch, position) decides.

An epoch's order: blocks of consecutive row groups, each of which is one request of an object store, are shuffled with
(seed, epoch), dealt to the workers so that each has about the same number of interactions, and put together into units
of about `shuffle_buffer` interactions. A unit's rows are shuffled together and cut into batches of about `tokens`
tokens. A worker reads only its own row groups; one unit and what is read ahead of the next are in memory.

The position is the list of units not yet consumed, with the number of rows consumed of the first: a compact form of
the row intervals that are left. Restored on the same number of workers each goes on exactly where it was; on another
number the units that are left are dealt anew, and each row still comes once.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ingest.arrays.jagged import cut, ranges
from ingest.data.batch import Batch, BatchBuilder, Rows
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest, Shard, SplitName
from ingest.data.reader_config import ReaderConfig
from ingest.data.shards import Damaged, Shards, Skipped

READ_TOGETHER = 262_144
"""Interactions of the consecutive row groups that are read at once, about: some megabytes."""
BLOCKS_A_WORKER = 16
BUILT_TOGETHER = 65_536
"""Tokens of the batches that are built at once, about: some of the work is the same for few tokens and many."""


@dataclass(frozen=True)
class Unit:
    """Row groups (shard, row group) whose rows are shuffled together, and how many rows of them are consumed."""

    row_groups: tuple[tuple[int, int], ...]
    consumed: int = 0


@dataclass(frozen=True)
class Position:
    """Where an epoch stands: for each worker the units that are left, the one being read first."""

    epoch: int
    workers: tuple[tuple[Unit, ...], ...]

    def to_json(self) -> dict[str, Any]:
        workers = [[[list(map(list, unit.row_groups)), unit.consumed] for unit in units] for units in self.workers]
        return {"epoch": self.epoch, "workers": workers}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Position:
        def unit(value: Any) -> Unit:
            return Unit(tuple((int(shard), int(group)) for shard, group in value[0]), int(value[1]))

        return cls(int(content["epoch"]), tuple(tuple(map(unit, units)) for units in content["workers"]))


class Units(Sequence[Unit]):
    """A worker's units of an epoch, each made when it is asked for: there may be a million row groups."""

    def __init__(self, groups_G2: NDArray[np.int64], chosen_C: NDArray[np.int64], bounds_U1: NDArray[np.int64]) -> None:
        """`groups_G2`: shard and row group of all of a split; unit u holds chosen[bounds[u]:bounds[u + 1]] of them."""
        self.groups_G2, self.chosen_C, self.bounds_U1 = groups_G2, chosen_C, bounds_U1

    def __len__(self) -> int:
        return len(self.bounds_U1) - 1

    def __getitem__(self, number: int) -> Unit:  # type: ignore[override]
        chosen = self.chosen_C[self.bounds_U1[number] : self.bounds_U1[number + 1]]
        return Unit(tuple((shard, group) for shard, group in self.groups_G2[chosen].tolist()))


@dataclass(frozen=True)
class Left:
    """What a worker has left of an epoch after a batch: the unit `number` from its row `consumed` on, and those after.

    Made for every batch, so it copies nothing; `units` is called where a position is saved.
    """

    of: Sequence[Unit]
    number: int
    consumed: int | None
    """None where that unit is through."""

    def units(self) -> tuple[Unit, ...]:
        after = tuple(self.of[number] for number in range(self.number + 1, len(self.of)))
        return after if self.consumed is None else (Unit(self.of[self.number].row_groups, self.consumed), *after)


Build = tuple[Future[list[Batch]], list[Left]]
"""Batches that are being built together, and the units that are left after each."""


class Reader:
    """One worker's stream of batches of one split.

    `epoch` yields `(batch, left)`: the batch and what this worker has left once it is consumed.
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
        evaluate: bool = False,
        after_last: bool = False,
        features: bool = True,
    ) -> None:
        """`evaluate`: in the stored order, all targets of long rows, with users and seen items.

        `after_last`: likewise, but with what comes after each row's last interaction as its one target. `features`:
        whether batches hold features and intents; without, their columns are not read.
        """
        self.url, self.manifest, self.config = url, manifest, config
        self.shards: list[Shard] = manifest.shards[split]
        self.split, self.rank, self.workers, self.seed = split, rank, workers, seed
        self.evaluate = evaluate = evaluate or after_last
        self.builder = BatchBuilder(
            manifest,
            items,
            config.max_length,
            config.windows or evaluate,
            with_seen=evaluate,
            after_last=after_last,
            features=features,
        )
        self.columns = ["user"] * evaluate + ["targets", "item", "time"] + ["duration"] * manifest.has_duration
        self.columns += [feature.name for feature in self.builder.features if feature.of == "event"]
        self.source = Shards(url, manifest, self.shards, self.columns, config.retry_seconds)
        counts = np.array([len(shard.row_groups) for shard in self.shards], dtype=np.int64)
        self.groups = np.stack(
            [np.repeat(np.arange(len(counts)), counts), ranges(np.zeros_like(counts), counts)], axis=1
        )
        """Shard and row group of every row group of the split."""
        sizes = chain.from_iterable(shard.row_groups for shard in self.shards)
        self.group_sizes = np.fromiter((size for _, size in sizes), dtype=np.int64, count=len(self.groups))
        self.skipped: list[Skipped] = []
        """Row groups that were set aside so far."""

    def epoch(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Batch, Left]]:
        """The batches of `epoch`, from its beginning or from `position`."""
        ahead = -(-self.config.prefetch // self._together)
        return _ahead(self._builds(epoch, self._epoch_units(epoch, position)), ahead)

    def units(self, epoch: int, position: Position | None = None) -> tuple[Unit, ...]:
        """This worker's units of `epoch`, or of what `position` says is left of it."""
        return tuple(self._epoch_units(epoch, position))

    def _epoch_units(self, epoch: int, position: Position | None) -> Sequence[Unit]:
        return deal(position, self.workers)[self.rank] if position is not None else self._units(epoch)

    def own_rows(self, epoch: int = 0) -> int:
        """How many rows this worker reads in `epoch`."""
        groups = [group for unit in self.units(epoch) for group in unit.row_groups]
        return sum(self.shards[shard].row_groups[group][0] for shard, group in groups)

    def rows(self) -> Iterator[Rows]:
        """The rows of every worker's units as they are stored, a unit at a time, in the stored order."""
        yield from self._read(self._grouped(np.arange(len(self.groups))))

    def _units(self, epoch: int) -> Units:
        begins, sizes = self._blocks()
        order = np.arange(len(begins))
        if not self.evaluate:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        own = order[self._own(sizes[order])]
        counts = np.diff(np.append(begins, len(self.groups)))[own]
        return self._grouped(ranges(begins[own], counts))

    def _blocks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each block of row groups begins, and its interactions.

        Of about `READ_TOGETHER` interactions, or fewer where the workers would have less than `BLOCKS_A_WORKER` each.
        """
        most = min(READ_TOGETHER, int(self.group_sizes.sum()) // (self.workers * BLOCKS_A_WORKER))
        ends = np.cumsum(self.group_sizes)
        number = (ends - 1) // max(most, 1)
        new = np.ones(len(ends), dtype=bool)
        new[1:] = (number[1:] != number[:-1]) | (self.groups[1:, 0] != self.groups[:-1, 0])
        begins = np.flatnonzero(new)
        return begins, np.add.reduceat(self.group_sizes, begins) if len(begins) else self.group_sizes

    def _own(self, sizes: NDArray) -> NDArray[np.int64]:
        """This worker's places in `sizes`: dealt largest first, to and fro, so that no worker has much more to read."""
        by_size = np.argsort(-sizes, kind="stable")
        turn = np.arange(len(sizes)) % (2 * self.workers)
        dealt_to = np.where(turn < self.workers, turn, 2 * self.workers - 1 - turn)
        return np.sort(by_size[dealt_to == self.rank])

    def _grouped(self, chosen: NDArray) -> Units:
        """Units of about `shuffle_buffer` interactions from the row groups `chosen`, in that order."""
        return Units(self.groups, chosen, cut(self.group_sizes[chosen], self.config.shuffle_buffer))

    def _builds(self, epoch: int, units: Sequence[Unit]) -> Generator[Build, None, None]:
        """The batches as they are being built, several at a time, each with the units that are left after it."""
        with ThreadPoolExecutor(self.config.build, "build") as pool:
            for rows, indices, left in self._cut(epoch, units):
                yield pool.submit(self.builder.build_all, rows, indices), left

    @property
    def _together(self) -> int:
        """Batches that are built at once; one when evaluating, where seen items, not tokens, are what takes memory."""
        return 1 if self.evaluate else max(1, BUILT_TOGETHER // self.config.tokens)

    def _cut(self, epoch: int, units: Sequence[Unit]) -> Iterator[tuple[Rows, list[NDArray], list[Left]]]:
        """The rows of some batches, by their place in the unit's, and the units that are left after each."""
        for number, rows in enumerate(self._read(units)):
            unit = units[number]
            if not len(rows):
                continue
            order = np.arange(len(rows))
            if not self.evaluate:
                np.random.default_rng([self.seed, epoch, *unit.row_groups[0]]).shuffle(order)
            batches = [(begin, end) for begin, end in pairwise(self._cuts(rows, order)) if begin >= unit.consumed]
            for first in range(0, len(batches), self._together):
                chosen = batches[first : first + self._together]
                left = [Left(units, number, end if end < len(rows) else None) for _, end in chosen]
                yield rows, [order[begin:end] for begin, end in chosen], left

    def _cuts(self, rows: Rows, order: NDArray) -> list[int]:
        """Row numbers at which the unit is cut into batches of about the same number of tokens."""
        tokens = self.builder.tokens_of(rows.columns["item"].lengths, rows.targets)[order]
        total = np.cumsum(tokens)
        count = max(1, -(-int(total[-1]) // self.config.tokens))
        inner = np.searchsorted(total, np.arange(1, count) * (total[-1] / count))
        return np.unique([0, *np.clip(inner, 1, len(order) - 1), len(order)]).tolist()

    def _read(self, units: Sequence[Unit]) -> Iterator[Rows]:
        """The rows of each unit, while those of the next are being read, `fetch` blocks at a time."""
        counts: deque[int] = deque()

        def blocks() -> Iterator[tuple[int, range]]:
            for unit in units:
                found = list(_together(unit.row_groups))
                counts.append(len(found))
                yield from found

        with closing(self._fetched(blocks())) as parts:
            for _ in range(len(units)):
                first = next(parts)
                rest = islice(parts, counts.popleft() - 1)
                yield Rows.concat([rows for found in chain([first], rest) for rows in found])

    def _fetched(self, blocks: Iterator[tuple[int, range]]) -> Generator[list[Rows], None, None]:
        """What is whole of each block, in their order; those of some `shuffle_buffer` interactions are read ahead."""
        running: deque[tuple[Future[list[Rows | Damaged]], int]] = deque()
        ahead = 0
        pool = ThreadPoolExecutor(self.config.fetch, "fetch")
        try:
            while True:
                while len(running) < self.config.fetch or ahead < self.config.shuffle_buffer:
                    block = next(blocks, None)
                    if block is None:
                        break
                    size = sum(self.shards[block[0]].row_groups[group][1] for group in block[1])
                    running.append((pool.submit(self.source.read, *block), size))
                    ahead += size
                if not running:
                    return
                future, size = running.popleft()
                ahead -= size
                yield [rows for rows in future.result() if self._is_whole(rows)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _is_whole(self, rows: Rows | Damaged) -> TypeGuard[Rows]:
        """Whether `rows` can be used; what is damaged is set aside or raised."""
        if isinstance(rows, Rows):
            return True
        if self.config.on_bad_shard == "error":
            raise rows.error
        shard = self.shards[rows.shard]
        self.skipped.append(Skipped(shard.path, rows.group, shard.row_groups[rows.group][0], str(rows.error)))
        return False


def _together(groups: Sequence[tuple[int, int]]) -> Iterator[tuple[int, range]]:
    """Runs of consecutive row groups of one shard: the shard, and the row groups."""
    begin = 0
    for end in range(1, len(groups) + 1):
        if end == len(groups) or groups[end] != (groups[end - 1][0], groups[end - 1][1] + 1):
            yield groups[begin][0], range(groups[begin][1], groups[end - 1][1] + 1)
            begin = end


def deal(position: Position, workers: int) -> tuple[tuple[Unit, ...], ...]:
    """The units that are left, for each of `workers` workers: as they were if the number is the same."""
    if len(position.workers) == workers:
        return position.workers
    left = [unit for units in position.workers for unit in units]
    split = [
        piece
        for unit in left
        for piece in ((unit,) if unit.consumed else (Unit((group,)) for group in unit.row_groups))
    ]
    return tuple(tuple(split[worker::workers]) for worker in range(workers))


def _ahead(builds: Generator[Build, None, None], depth: int) -> Iterator[tuple[Batch, Left]]:
    """Run `builds` in a thread, up to `depth` of them ahead of the consumer; its errors come up here."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            with closing(builds):
                for value in builds:
                    if not put(value):
                        return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="reader", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            batches, left = value
            yield from zip(batches.result(), left, strict=True)
    finally:
        stopped.set()
        thread.join()
