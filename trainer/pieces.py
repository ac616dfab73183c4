"""Tensors as pieces of files: raw values, each piece with a checksum, and a list of them as JSON. No code is in either.

    <stem>.bin     the pieces one after the other: values as they are in memory, row after row, little-endian
    <stem>.json    of each piece: tensor, dtype, shape, which part of it, where in the file, checksum (CRC-32)

A piece is a range of rows of what one worker holds, of some `PIECE_BYTES`, or some single rows, after their numbers as
int64: any worker may load it, under any sharding, and neither writing nor reading holds more than some pieces besides
the tensors themselves. Copies for writing are made
in buffers that are allocated once: on Linux that is 8 times as fast as into memory fresh from the system. A buffer is
written as whole blocks, so some bytes between pieces mean nothing.
"""

from __future__ import annotations

import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from mmap import mmap
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ingest.errors import DamagedCheckpointError, InputError
from ingest.patience import patiently
from ingest.storage import BLOCK, join, open_blocks, read_range, size_of
from trainer.checked_json import read_checked, write_checked

PIECE_BYTES = 2**25
NUMBER = 8
"""Bytes of the number of a single row."""
_ALIGNED = 8
"""Bytes that a piece in a buffer begins at a multiple of."""
_READ_AT_ONCE = 4
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}
_NAME = re.compile(r"pieces-[0-9a-f]+-\d+-\d+")
assert sys.byteorder == "little"


@dataclass(frozen=True)
class Part:
    """A box of a tensor as this worker holds it: where it begins in the whole, and its values themselves."""

    tensor: str
    shape: tuple[int, ...]
    """Of the whole."""
    begin: tuple[int, ...]
    values: Tensor
    only: Tensor | None = None
    """Of its rows these alone, ascending; None for all."""

    @property
    def nbytes(self) -> int:
        if self.only is None:
            return self.values.nbytes
        return len(self.only) * (NUMBER + self.values[:1].nbytes)

    def rows(self, first: int, count: int) -> Part:
        """Of its rows `count` from `first` on."""
        if self.only is not None:
            return replace(self, only=self.only[first : first + count])
        return replace(self, begin=(self.begin[0] + first, *self.begin[1:]), values=self.values.narrow(0, first, count))


@dataclass(frozen=True)
class Piece:
    """A box of a tensor as it lies in a file."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    begin: tuple[int, ...]
    sizes: tuple[int, ...]
    offset: int
    """Where in the file it begins, in bytes."""
    length: int
    checksum: int = 0
    end: int | None = None
    """Of single rows, whose numbers lie before their values: one past the last of them; `begin` has the first."""


@dataclass
class Filled:
    """A buffer with the copies of some pieces, whose offsets are those in the buffer."""

    buffer: Tensor
    used: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def has_room(self, length: int) -> bool:
        return self._next() + length <= len(self.buffer)

    def add(self, part: Part) -> None:
        values, offset, begin, end = part.values, self._next(), part.begin, None
        first, self.used = offset, offset + part.nbytes
        if part.only is not None:
            number_N, values = part.only + begin[0], values.index_select(0, part.only)
            first += number_N.nbytes
            self.buffer[offset:first].view(torch.int64).copy_(number_N)
            numbers = self.buffer[offset:first].view(torch.int64)
            begin, end = (int(numbers[0]), *begin[1:]), int(numbers[-1]) + 1
        self.buffer[first : self.used].view(values.dtype).view(values.shape).copy_(values)
        box = part.shape, begin, tuple(values.shape)
        self.pieces.append(Piece(part.tensor, _name(values.dtype), *box, offset, part.nbytes, end=end))

    def _next(self) -> int:
        return _round_up(self.used, _ALIGNED)


class Buffers:
    """Memory for copies, `PIECE_BYTES` at a time and no more than `limit`, or two buffers where that is less.

    `pinned`: whether a GPU copies into it.
    """

    def __init__(self, limit: int, pinned: bool) -> None:
        self.size, self.pinned = _round_up(PIECE_BYTES, BLOCK), pinned
        self.most, self.made = max(limit // self.size, 2), 0
        self.free: SimpleQueue[Tensor] = SimpleQueue()

    @property
    def bytes(self) -> int:
        """What is allocated."""
        return self.made * self.size

    def take(self, length: int) -> Tensor:
        """A buffer for `length` bytes at least; waits for one where there are as many as there may be."""
        if length > self.size:
            return _memory(_round_up(length, BLOCK), self.pinned)
        with suppress(Empty):
            return self.free.get_nowait()
        if self.made == self.most:
            return self.free.get()
        self.made += 1
        return _memory(self.size, self.pinned)

    def give_back(self, buffer: Tensor) -> None:
        if len(buffer) == self.size:
            self.free.put(buffer)


def cut(part: Part) -> Iterator[Part]:
    """`part` in ranges of rows of `PIECE_BYTES` at most, or of one row; nothing of an empty one."""
    if part.nbytes <= PIECE_BYTES or not part.values.dim():
        if part.nbytes:
            yield part
        return
    rows = len(part.values if part.only is None else part.only)
    at_once = max(1, PIECE_BYTES * rows // part.nbytes)
    for row in range(0, rows, at_once):
        yield part.rows(row, min(at_once, rows - row))


def copies(parts: Iterable[Part], buffers: Buffers) -> Iterator[Filled]:
    """The values of `parts` as they now are, a buffer at a time."""
    filled: Filled | None = None
    for part in parts:
        for piece in cut(part):
            length = piece.nbytes
            if filled is None or not filled.has_room(length):
                if filled is not None:
                    yield filled
                filled = Filled(buffers.take(length))
            filled.add(piece)
    if filled is not None:
        yield filled


def write_pieces(stem: str, copied: Iterable[Filled], buffers: Buffers) -> None:
    """Write what is `copied` and then the list of it; buffers are given back one after the other."""
    pieces, size = list[Piece](), 0
    with open_blocks(f"{stem}.bin") as append:
        for filled in copied:
            try:
                content = filled.buffer.numpy()[: _round_up(filled.used, BLOCK)].data
                for piece in filled.pieces:
                    checksum = zlib.crc32(content[piece.offset : piece.offset + piece.length])
                    pieces.append(replace(piece, offset=size + piece.offset, checksum=checksum))
                append(content)
                size += len(content)
            finally:
                buffers.give_back(filled.buffer)
    write_checked(f"{stem}.json", {"bytes": size, "pieces": [asdict(piece) for piece in pieces]})


class StoredPieces:
    """The pieces in `folder` that all workers wrote of a checkpoint, each under one of the `stems`.

    `base`: the checkpoint that has the values of what these do not have. What is not there as its list says is raised
    as a `DamagedCheckpointError`, which names the file. A storage that does not answer is asked again for
    `retry_seconds`.
    """

    def __init__(self, folder: str, stems: list[str], retry_seconds: float, base: StoredPieces | None = None) -> None:
        self.folder, self.retry_seconds, self.base = folder, retry_seconds, base
        self.pieces: dict[str, list[tuple[str, Piece]]] = {}
        """Of each tensor, with the files that they are in."""
        for stem in stems:
            self._list(stem)

    def _list(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise DamagedCheckpointError(f"{self.folder}: {name!r} is no name of pieces")
        stem = join(self.folder, name)
        path = f"{stem}.json"
        content = patiently(lambda: read_checked(path), path, self.retry_seconds)
        file = f"{stem}.bin"
        try:
            found = patiently(lambda: size_of(file), file, self.retry_seconds)
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{file}: is gone") from None
        if found != content["bytes"]:
            raise DamagedCheckpointError(f"{file}: has {found:,} bytes, and {content['bytes']:,} were expected")
        for values in content["pieces"]:
            boxes = {key: tuple(values[key]) for key in ("shape", "begin", "sizes")}
            piece = Piece(**values | boxes)
            self.pieces.setdefault(piece.tensor, []).append((file, piece))

    def misfit(self, difference: str) -> InputError:
        """What is raised where the checkpoint is sound and of another model."""
        return InputError(f"{self.folder}: does not fit this model's config: {difference}")

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin so, and of which these have values themselves."""
        return [name for name in self.pieces if name.startswith(prefix)]

    def whole(self, name: str) -> Tensor:
        """A new tensor for the values of `name`, of which these have some themselves."""
        _, piece = self.pieces[name][0]
        return torch.empty(piece.shape, dtype=_DTYPES[piece.dtype])

    def read(self, parts: Iterable[Part]) -> None:
        """Put the stored values into `parts`; raises `InputError`, before any is read, where they are none of those."""
        wanted, below = list[tuple[str, Piece, Part]](), list[Part]()
        for part in parts:
            found, missing = self._wanted(part)
            wanted += found
            if missing:
                below.append(part)
        if self.base is not None:
            self.base.read(below)
        wanted.sort(key=lambda each: (each[0], each[1].offset))
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            for _ in pool.map(lambda each: self._read(*each), wanted):
                pass

    def _wanted(self, part: Part) -> tuple[list[tuple[str, Piece, Part]], int]:
        """The pieces that have values of `part`, and how many values of it no range of rows has."""
        stored, found = self.pieces.get(part.tensor, []), []
        values, missing = part.values, part.values.numel()
        if missing and not stored and self.base is None:
            raise self.misfit(f"it has no {part.tensor}")
        for file, piece in stored:
            if piece.shape != part.shape or _DTYPES.get(piece.dtype) != values.dtype:
                theirs, ours = f"{piece.dtype} {list(piece.shape)}", f"{_name(values.dtype)} {list(part.shape)}"
                raise self.misfit(f"it has {part.tensor} as {theirs}, and the model as {ours}")
            _, sizes = _overlap(piece, part)
            if common := math.prod(sizes):
                missing -= common if piece.end is None else 0
                found.append((file, piece, part))
        if missing and self.base is None:
            raise DamagedCheckpointError(f"{stored[0][0]}: {part.tensor} lacks {missing:,} values")
        return found, missing

    def _read(self, file: str, piece: Piece, part: Part) -> None:
        end = piece.offset + piece.length
        content = bytearray(patiently(lambda: read_range(file, piece.offset, end), file, self.retry_seconds))
        if (found := zlib.crc32(content)) != piece.checksum:
            raise DamagedCheckpointError(
                f"{file}: bytes {piece.offset:,} to {end:,} ({piece.tensor}) have checksum {found}, and "
                f"{piece.checksum} was expected"
            )
        numbers = 0 if piece.end is None else NUMBER * piece.sizes[0]
        source = torch.frombuffer(content, dtype=_DTYPES[piece.dtype], offset=numbers).view(piece.sizes)
        target = part.values
        begins, sizes = _overlap(piece, part)
        for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
            if axis or not numbers:
                source = source.narrow(axis, begin - piece.begin[axis], size)
                target = target.narrow(axis, begin - part.begin[axis], size)
        if not numbers:
            target.copy_(source)
            return
        row_N = torch.frombuffer(content, dtype=torch.int64, count=piece.sizes[0]) - part.begin[0]
        own_N = (row_N >= 0) & (row_N < len(target))
        target.index_copy_(0, row_N[own_N].to(target.device), source[own_N].to(target.device))


def stored_pieces(folder: str, name: str, marker: Mapping[str, Any], retry_seconds: float) -> StoredPieces:
    """Those of the checkpoint `name` in `folder`, whose marker says whether another one has what it does not hold."""
    base, below = marker.get("base"), None
    if base is not None:
        if not re.fullmatch(r"step-\d+", base["checkpoint"]):
            raise DamagedCheckpointError(f"{join(folder, name)}: {base['checkpoint']!r} is no name of a checkpoint")
        below = StoredPieces(join(folder, base["checkpoint"]), base["pieces"], retry_seconds)
    return StoredPieces(join(folder, name), marker["pieces"], retry_seconds, below)


def _overlap(piece: Piece, part: Part) -> tuple[list[int], list[int]]:
    """The box that both have: where it begins in the whole tensor, and its sizes, which may be 0."""
    spans = piece.sizes if piece.end is None else (piece.end - piece.begin[0], *piece.sizes[1:])
    begins = [max(pair) for pair in zip(piece.begin, part.begin, strict=True)]
    ends = [min(a + b, c + d) for a, b, c, d in zip(piece.begin, spans, part.begin, part.values.shape, strict=True)]
    return begins, [max(end - begin, 0) for begin, end in zip(begins, ends, strict=True)]


def _memory(size: int, pinned: bool) -> Tensor:
    """Bytes that begin at a multiple of `BLOCK`."""
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.frombuffer(mmap(-1, size), dtype=torch.uint8)


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
