"""The order of an epoch, which (seed, epoch, position) decides: what is read together, by which worker, what is left.

Runs of consecutive row groups, each of which is one request of an object store, are shuffled with (seed, epoch), dealt
to the workers so that each has about the same number of interactions, and put together into shuffle blocks of about
`shuffle_buffer` interactions, whose rows are shuffled together.

The position is the list of the shuffle blocks not yet consumed, with the number of rows consumed of the first: a
compact form of the row intervals that are left. Restored on the same number of workers each goes on exactly where it
was; on another number what is left is dealt anew, blocks that are begun in parts of their rows where there are more
workers than such blocks, and each row still comes once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np

from ingest.arrays.jagged import Integers, cut, offsets_of, ranges
from ingest.data.manifest import Shard

READ_TOGETHER = 262_144
"""Interactions of the consecutive row groups that are read at once, about: some megabytes."""
RUNS_A_WORKER = 16


@dataclass(frozen=True)
class ShuffleBlock:
    """Row groups (shard, row group) whose rows are shuffled together, and how many rows of them are consumed.

    A row that comes in parts (`ingest.data.cutting`) counts as many. `until`: the rows from that one on are another
    worker's, or there are no more; None, of a block that is not begun, for all there are.
    """

    row_groups: tuple[tuple[int, int], ...]
    consumed: int = 0
    until: int | None = None

    def runs(self) -> list[tuple[int, list[int]]]:
        """Its runs of consecutive row groups of one shard: the shard, and the row groups."""
        runs = groupby(enumerate(self.row_groups), key=lambda entry: (entry[1][0], entry[1][1] - entry[0]))
        return [(shard, [group for _, (_, group) in run]) for (shard, _), run in runs]


@dataclass(frozen=True)
class Position:
    """Where an epoch stands: for each worker the shuffle blocks that are left, the one being read first."""

    epoch: int
    workers: tuple[tuple[ShuffleBlock, ...], ...]

    def to_json(self) -> dict[str, Any]:
        def value(block: ShuffleBlock) -> list[Any]:
            return [list(map(list, block.row_groups)), block.consumed, block.until]

        return {"epoch": self.epoch, "workers": [list(map(value, blocks)) for blocks in self.workers]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Position:
        def block(value: Any) -> ShuffleBlock:
            groups, consumed, *until = value  # without, in a checkpoint of before blocks were parted
            return ShuffleBlock(tuple((int(shard), int(group)) for shard, group in groups), int(consumed), *until)

        return cls(int(content["epoch"]), tuple(tuple(map(block, blocks)) for blocks in content["workers"]))

    def dealt(self, workers: int, shards: Sequence[Shard]) -> tuple[tuple[ShuffleBlock, ...], ...]:
        """What is left, for each of `workers` workers: as it was if the number is the same, or else about as much each.

        Where a block that is begun goes to several workers each of them reads all of it, so it is parted only as often
        as it takes to give each worker one.
        """
        if len(self.workers) == workers:
            return self.workers
        begun = sum(bool(block.consumed) for block in chain(*self.workers))
        pieces, source = list[tuple[ShuffleBlock, float]](), list[int]()
        for number, block in enumerate(chain(*self.workers)):
            pieces += _parts(block, -(-workers // begun), shards) if block.consumed else _groups(block, shards)
            source += [number] * (len(pieces) - len(source))
        loads, dealt = [(0.0, worker) for worker in range(workers)], [list[int]() for _ in range(workers)]
        for number in sorted(range(len(pieces)), key=lambda number: -pieces[number][1]):
            load, least = loads[0]
            heapreplace(loads, (load + pieces[number][1], least))
            dealt[least].append(number)
        return tuple(_joined([(pieces[number][0], source[number]) for number in sorted(own)]) for own in dealt)


def _joined(pieces: list[tuple[ShuffleBlock, int]]) -> tuple[ShuffleBlock, ...]:
    """Blocks that are not begun and come from the same one (its number) as one again, so that their rows are shuffled
    and cut into batches together."""
    found: list[ShuffleBlock] = []
    for (consumed, _), same in groupby(pieces, key=lambda piece: (piece[0].consumed, piece[1])):
        blocks = [block for block, _ in same]
        if consumed:
            found += blocks
        else:
            found.append(ShuffleBlock(tuple(chain.from_iterable(block.row_groups for block in blocks))))
    return tuple(found)


def _groups(block: ShuffleBlock, shards: Sequence[Shard]) -> list[tuple[ShuffleBlock, float]]:
    """Each row group as a block of its own, with its interactions."""
    return [(ShuffleBlock((place,)), shards[place[0]].row_groups[place[1]][1]) for place in block.row_groups]


def _parts(block: ShuffleBlock, number: int, shards: Sequence[Shard]) -> list[tuple[ShuffleBlock, float]]:
    """What is left of a block in `number` parts, with about how many interactions each has."""
    rows, size = (sum(counts) for counts in zip(*(shards[s].row_groups[g] for s, g in block.row_groups), strict=True))
    end = rows if block.until is None else block.until
    bounds = [block.consumed + (end - block.consumed) * part // number for part in range(number + 1)]
    return [
        (
            replace(block, consumed=begin, until=block.until if stop == end else stop),
            (stop - begin) * size / max(rows, end),
        )
        for begin, stop in pairwise(bounds)
    ]


class ShuffleBlocks(Sequence[ShuffleBlock]):
    """Shuffle blocks of about `buffer` interactions, each made when it is asked for: there may be a million row groups.

    `groups_G2`: shard and row group of each; `size_G`: its interactions.
    """

    def __init__(self, groups_G2: Integers, size_G: Integers, buffer: int) -> None:
        self.groups_G2, self.bounds = groups_G2, cut(size_G, buffer)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> ShuffleBlock:  # type: ignore[override]
        groups = self.groups_G2[self.bounds[number] : self.bounds[number + 1]]
        return ShuffleBlock(tuple((shard, group) for shard, group in groups.tolist()))


@dataclass(frozen=True)
class Remaining:
    """What a worker has left of an epoch after a batch: the block `number` from its row `consumed` on, and those after.

    Made for every batch, so it copies nothing; `blocks` is called where a position is saved.
    """

    of: Sequence[ShuffleBlock] = ()
    number: int = 0
    consumed: int | None = None
    """None where that block is through."""
    until: int | None = None
    """How many rows that block has for this worker."""
    began: int = 0
    """The row of that block at which the batch began."""

    def batch(self, shards: Sequence[Shard]) -> str:
        """Which rows the batch was made of, in words; empty where there was none."""
        if not self.of:
            return ""
        end = self.until if self.consumed is None else self.consumed
        runs = [
            f"{shards[shard].path} row groups {groups[0]} to {groups[-1]}"
            for shard, groups in self.of[self.number].runs()
        ]
        return f"rows {self.began} to {end} in the epoch's order of {', '.join(runs)}"

    def blocks(self) -> tuple[ShuffleBlock, ...]:
        after = tuple(self.of[number] for number in range(self.number + 1, len(self.of)))
        if self.consumed is None:
            return after
        return (replace(self.of[self.number], consumed=self.consumed, until=self.until), *after)


class EpochOrder:
    """One worker's part of the row groups of `shards`, epoch by epoch; in the stored order without a `seed`."""

    def __init__(self, shards: list[Shard], buffer: int, rank: int, workers: int, seed: int | None) -> None:
        self.buffer, self.rank, self.workers, self.seed = buffer, rank, workers, seed
        count_S = np.array([len(shard.row_groups) for shard in shards], dtype=np.int64)
        self.groups_G2 = np.stack(
            [np.repeat(np.arange(len(shards)), count_S), ranges(np.zeros_like(count_S), count_S)], axis=1
        )
        sizes = chain.from_iterable(shard.row_groups for shard in shards)
        self.size_G = np.fromiter((size for _, size in sizes), dtype=np.int64, count=len(self.groups_G2))

    def stored(self) -> ShuffleBlocks:
        """The blocks of every worker, in the stored order."""
        return ShuffleBlocks(self.groups_G2, self.size_G, self.buffer)

    def blocks(self, epoch: int) -> ShuffleBlocks:
        """This worker's blocks of `epoch`."""
        begins, ends = self._runs()
        order = np.arange(len(begins))
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch]).shuffle(order)
        sizes = np.diff(offsets_of(self.size_G)[np.append(begins, ends[-1:])])
        own = order[self._dealt(sizes[order])]
        groups = ranges(begins[own], (ends - begins)[own])
        return ShuffleBlocks(self.groups_G2[groups], self.size_G[groups], self.buffer)

    def rows(self, epoch: int, block: ShuffleBlock, count: int) -> Integers:
        """The order of the `count` rows of a block."""
        order = np.arange(count)
        if self.seed is not None:
            np.random.default_rng([self.seed, epoch, *block.row_groups[0]]).shuffle(order)
        return order

    def _runs(self) -> tuple[Integers, Integers]:
        """Where each run of consecutive row groups of one shard begins and ends.

        Of about `READ_TOGETHER` interactions, or fewer where the workers would have less than `RUNS_A_WORKER` each.
        """
        most = max(min(READ_TOGETHER, int(self.size_G.sum()) // (self.workers * RUNS_A_WORKER)), 1)
        number_G = (np.cumsum(self.size_G) - 1) // most
        begins = np.flatnonzero(np.diff(number_G, prepend=-1) | np.diff(self.groups_G2[:, 0], prepend=-1))
        return begins, np.append(begins[1:], len(number_G))[: len(begins)]

    def _dealt(self, sizes: Integers) -> Integers:
        """This worker's places in `sizes`: dealt largest first, to and fro, so that no worker has much more to read."""
        by_size = np.argsort(-sizes, kind="stable")
        turn = np.arange(len(sizes)) % (2 * self.workers)
        dealt_to = np.where(turn < self.workers, turn, 2 * self.workers - 1 - turn)
        return np.sort(by_size[dealt_to == self.rank])
