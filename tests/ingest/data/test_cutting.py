"""Rows that are long for a batch come in parts: with the same sequences, and no batch that is much too large."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.data import cutting
from ingest.data.batch import Batch
from ingest.data.cutting import Cutting, Parts
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.order import Position, ShuffleBlock
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from tests.ingest.data.test_reader import prepared

LENGTH, TOKENS = 4, 10
"""Of a sequence and of a batch: most of the log's rows, which have up to 30 interactions, are long for it."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tmp_path_factory.mktemp("long-rows"), 70)


def reader(url: str, rank: int = 0, workers: int = 1, tokens: int = TOKENS, **more: bool) -> Reader:
    manifest = load_manifest(url)
    config = ReaderConfig(tokens=tokens, shuffle_buffer=150, max_length=LENGTH, windows=True)
    return Reader(url, manifest, load_items(url, manifest), "train", config, rank=rank, workers=workers, **more)  # type: ignore[arg-type]


def target_times(batches: list[Batch]) -> Counter[int]:
    return Counter(chain.from_iterable(b.request_time_T[b.target_position_Q].tolist() for b in batches))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(2, 90), st.integers(0, 100)), min_size=1, max_size=6),
    max_length=st.integers(1, 12),
    tokens=st.integers(1, 60),
    windows=st.booleans(),
    most_seen=st.none() | st.integers(1, 2000),
)
def test_parts_have_the_sequences_of_their_rows_and_are_small(
    rows: list[tuple[int, int]], max_length: int, tokens: int, windows: bool, most_seen: int | None
) -> None:
    lengths, targets = np.array([(length, min(targets, length - 1)) for length, targets in rows]).T
    whole = Parts(np.arange(len(rows)), lengths, targets)
    cut = Cutting(max_length, windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "SEEN", most_seen or cutting.SEEN)
        parts = cut.parts(lengths, targets, tokens, most_seen is not None)
    row_B, *expected = cut.sequences(whole)
    part_B, *found = cut.sequences(parts)
    ours, theirs = zip(parts.row_P[part_B], *found, strict=True), zip(row_B, *expected, strict=True)
    assert sorted(ours) == sorted(theirs)
    assert (np.diff(parts.row_P * 1000 + parts.length_P) > 0).all()
    sequences = np.bincount(part_B)
    tokens_P = cut.cost(parts, tokens, seen=False)
    seen_P = parts.length_P * parts.targets_P
    assert ((tokens_P <= tokens) | (sequences == 1)).all()
    assert most_seen is None or ((seen_P <= most_seen + max_length * parts.length_P) | (sequences == 1)).all()
    if windows and most_seen is None:
        together = np.bincount(row_B, minlength=len(rows)) <= tokens // max_length
        assert (np.bincount(parts.row_P)[together] == 1).all()


@settings(max_examples=25, deadline=None)
@given(workers=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_every_target_comes_once_through_changes_of_the_number_of_workers(
    url: str, workers: list[int], data: st.DataObject
) -> None:
    position, taken = None, list[Batch]()
    for count in workers:
        left: list[tuple[ShuffleBlock, ...]] = []
        stop = data.draw(st.integers(0, 40), label=f"steps on {count}")
        for rank in range(count):
            own = reader(url, rank, count)
            read = [(batch, after.blocks()) for batch, after in own.epoch(1, position)][:stop]
            taken += [batch for batch, _ in read]
            left.append(read[-1][1] if read else tuple(own.blocks(1, position)))
        position = Position.from_json(Position(1, tuple(left)).to_json())
    taken += [batch for batch, _ in reader(url).epoch(1, position)]
    assert target_times(taken) == target_times([b for b, _ in reader(url, tokens=10**6).epoch(1)])
    assert max(batch.tokens for batch in taken) < 3 * TOKENS


def test_a_long_history_is_ranked_a_part_at_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same targets with the same histories, of which a batch has a bounded number of items."""

    def ranked(batches: list[Batch]) -> list[tuple[object, int, tuple[int, ...]]]:
        found = []
        for batch in batches:
            assert batch.seen is not None
            assert batch.target_time_Q is not None
            seen = (tuple(part.tolist()) for part in batch.seen.values.split(batch.seen.lengths.tolist()))
            users = [batch.users[row] for row in batch.row_Q.tolist()]
            found += list(zip(users, batch.target_time_Q.tolist(), seen, strict=True))
        return found

    whole = [batch for batch, _ in reader(url, tokens=1000, evaluate=True).epoch(0)]
    monkeypatch.setattr(cutting, "SEEN", 100)
    parts = [batch for batch, _ in reader(url, tokens=1000, evaluate=True).epoch(0)]
    assert sorted(ranked(parts)) == sorted(ranked(whole))
    most = 30 * LENGTH // 2  # of one sequence, which is never cut
    assert max(len(batch.seen.values) for batch in parts if batch.seen) <= 100 + most
    assert max(len(batch.seen.values) for batch in whole if batch.seen) > 1000
