"""The reader's order, whatever shards, batch sizes, workers and stopping points: every row exactly once."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.arrays.jagged import offsets_of, ranges
from ingest.data.batch import Batch, Lists
from ingest.data.builder import BatchBuilder
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.order import Position, ShuffleBlock
from ingest.data.reader import Reader, ahead
from ingest.data.reader_config import ReaderConfig
from ingest.data.schema import DataConfig
from ingest.prepare.pipeline import prepare
from tests.small import Data, train_config

USERS = 90
ROW_GROUPS = [20, 70, 10_000]
STEPS = list[tuple[Batch, tuple[ShuffleBlock, ...]]]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Prepared data sets by the size of their row groups."""
    return {size: prepared(tmp_path_factory.mktemp(f"groups-of-{size}"), size) for size in ROW_GROUPS}


def log_of() -> pa.Table:
    """Users with 1 to 30 events; no two events share a time, so a token's time names its event."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 31, USERS)
    user = np.repeat(np.arange(USERS), lengths)
    rows = {
        "user_id": user,
        "item_id": rng.integers(0, 20, len(user)),
        "timestamp": rng.permutation(len(user)) + 1_600_000_000,
    }
    return pa.table(rows)


def prepared(folder: Path, row_group: int) -> str:
    pq.write_table(log_of(), folder / "events.parquet")
    config = {
        "events": str(folder / "events.parquet"),
        "time_unit": "s",
        "row_group_interactions": row_group,
        "shard_interactions": 3 * row_group,
    }
    prepare(DataConfig.model_validate(config), str(folder / "data"), lambda _: None)
    return str(folder / "data")


def reader(url: str, rank: int = 0, workers: int = 1, tokens: int = 100, buffer: int = 300, **more: object) -> Reader:
    manifest = load_manifest(url)
    config = ReaderConfig(tokens=tokens, shuffle_buffer=buffer, max_length=50)
    return Reader(url, manifest, load_items(url, manifest), "train", config, rank=rank, workers=workers, **more)  # type: ignore[arg-type]


def tokens_of(batches: list[Batch]) -> Counter[int]:
    return Counter(time for batch in batches for time in batch.time_T.tolist())


@functools.cache
def every_token(url: str) -> Counter[int]:
    """Every input token of the training rows, straight from the files: all interactions but each row's last."""
    rows = [row for path in sorted(Path(url, "train").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return Counter(time for row in rows for time in row["time"][:-1])


def epoch(url: str, workers: int, number: int, position: Position | None, **options: int) -> list[STEPS]:
    """What each of `workers` workers reads."""
    readers = [reader(url, rank, workers, **options) for rank in range(workers)]
    return [[(batch, left.blocks()) for batch, left in each.epoch(number, position)] for each in readers]


SHAPES = {
    "row_group": st.sampled_from(ROW_GROUPS),
    "tokens": st.sampled_from([1, 40, 150, 100_000]),
    "buffer": st.sampled_from([1, 150, 10_000]),
}


@settings(max_examples=25, deadline=None)
@given(workers=st.integers(1, 5), number=st.integers(0, 3), **SHAPES)
def test_every_row_comes_once_on_any_number_of_workers(
    urls: dict[int, str], row_group: int, tokens: int, buffer: int, workers: int, number: int
) -> None:
    url = urls[row_group]
    read = epoch(url, workers, number, None, tokens=tokens, buffer=buffer)
    assert tokens_of([batch for steps in read for batch, _ in steps]) == every_token(url)


@settings(max_examples=40, deadline=None)
@given(workers=st.lists(st.integers(1, 4), min_size=2, max_size=4), data=st.data(), **SHAPES)
def test_every_row_comes_once_through_changes_of_the_number_of_workers(
    urls: dict[int, str], row_group: int, tokens: int, buffer: int, workers: list[int], data: st.DataObject
) -> None:
    """Stopped somewhere and gone on with on another number of workers, with batches of another size, several times, by
    way of JSON."""
    url, position = urls[row_group], None
    taken: list[Batch] = []
    for count in workers[:-1]:
        merged = data.draw(st.integers(1, 3), label="merged")
        read = epoch(url, count, 1, position, tokens=tokens, buffer=buffer, merged=merged)
        steps = data.draw(st.integers(0, max(map(len, read))), label=f"steps on {count}")
        left: list[tuple[ShuffleBlock, ...]] = []
        for rank, mine in enumerate(read):
            taken += [batch for batch, _ in mine[:steps]]
            untouched = reader(url, rank, count, tokens, buffer).blocks(1, position)
            left.append(mine[min(steps, len(mine)) - 1][1] if steps and mine else untouched)
        position = Position.from_json(Position(1, tuple(left)).to_json())
    read = epoch(url, workers[-1], 1, position, tokens=tokens, buffer=buffer)
    assert tokens_of([*taken, *(batch for steps in read for batch, _ in steps)]) == every_token(url)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3), (2, 3), (3, 2), (2, 1)])
def test_what_is_left_of_a_block_is_divided_among_more_workers(urls: dict[int, str], before: int, after: int) -> None:
    """Of a data set that is one block for each worker: none has much more to do than the others, but where there are
    fewer workers than blocks that are begun."""
    left = tuple(steps[1][1] for steps in epoch(urls[20], before, 1, None, tokens=40, buffer=10_000))
    position = Position.from_json(Position(1, left).to_json())
    read = epoch(urls[20], after, 1, position, tokens=40, buffer=10_000)
    tokens = [sum(batch.tokens for batch, _ in steps) for steps in read]
    assert min(tokens) > 0
    assert max(tokens) < (1.5 if after % before == 0 or after == 1 else 2.5) * min(tokens)


@pytest.mark.parametrize("merged", [1, 2])
def test_batches_stay_as_large_where_workers_change(urls: dict[int, str], merged: int) -> None:
    """Though what is left is dealt in row groups, which are smaller here."""
    left = tuple(steps[0][1] for steps in epoch(urls[20], 2, 1, None, tokens=100, buffer=10_000))
    position = Position.from_json(Position(1, left).to_json())
    ((*batches,),) = epoch(urls[20], 1, 1, position, tokens=100, buffer=10_000, merged=merged)
    tokens = [batch.tokens for batch, _ in batches]
    assert sum(tokens) > 700
    assert sum(tokens) / len(tokens) > 65 * merged  # the last of a block may be small


@settings(max_examples=25, deadline=None)
@given(workers=st.integers(1, 3), stop=st.integers(1, 30), merged=st.integers(1, 3), **SHAPES)
def test_resumed_is_uninterrupted_on_the_same_number_of_workers(
    urls: dict[int, str], row_group: int, tokens: int, buffer: int, workers: int, stop: int, merged: int
) -> None:
    url = urls[row_group]
    whole = epoch(url, workers, 2, None, tokens=tokens, buffer=buffer, merged=merged)
    left = tuple(steps[min(stop, len(steps)) - 1][1] if steps else () for steps in whole)
    position = Position.from_json(Position(2, left).to_json())
    resumed = epoch(url, workers, 2, position, tokens=tokens, buffer=buffer, merged=merged)
    for before, after in zip(whole, resumed, strict=True):
        assert [batch.time_T.tolist() for batch, _ in before[stop:]] == [b.time_T.tolist() for b, _ in after]
        assert [blocks for _, blocks in before[stop:]] == [blocks for _, blocks in after]


def test_the_order_depends_on_seed_and_epoch_alone(urls: dict[int, str]) -> None:
    url = urls[70]

    def order(number: int, seed: int) -> list[list[int]]:
        return [batch.time_T.tolist() for batch, _ in reader(url, seed=seed).epoch(number)]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(number, seed)) for number, seed in itertools.product((0, 1), (0, 1))}) == 4


@pytest.mark.parametrize("merged", [2, 3])
def test_merged_batches_hold_those_that_there_would_be_otherwise(urls: dict[int, str], merged: int) -> None:
    """Block by block: the last one of a block may hold fewer."""
    url = urls[70]
    single = [(batch.time_T.tolist(), left) for batch, left in reader(url, tokens=40).epoch(0)]
    expected: list[list[int]] = []
    for _, block in itertools.groupby(single, lambda found: found[1].number):
        times = [time for time, _ in block]
        groups = (times[first : first + merged] for first in range(0, len(times), merged))
        expected += [sorted(itertools.chain.from_iterable(group)) for group in groups]
    assert [sorted(batch.time_T.tolist()) for batch, _ in reader(url, tokens=40, merged=merged).epoch(0)] == expected
    assert len(expected) < len(single) / (merged - 0.5)


def test_an_epoch_that_is_left_early_leaves_no_thread(urls: dict[int, str]) -> None:
    before = set(threading.enumerate())
    batches = reader(urls[20], tokens=40, buffer=150).epoch(0)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before


@given(st.integers(0, 5), st.integers(1, 3))
def test_ahead_gives_each_when_those_after_it_are_started(length: int, number: int) -> None:
    started: list[int] = []

    def starting() -> Generator[int, None, None]:
        for value in range(length):
            started.append(value)
            yield value

    for value in ahead(starting(), number):
        assert started == list(range(min(value + number + 1, length)))
    assert len(started) == length


def test_workers_get_about_the_same_number_of_interactions(urls: dict[int, str]) -> None:
    url = urls[20]
    sizes = [sum(batch.tokens for batch, _ in steps) for steps in epoch(url, 3, 0, None)]
    assert max(sizes) - min(sizes) <= 2 * 30


@pytest.mark.parametrize(("max_length", "moment"), [(3, None), (50, 1_700_000_000_000)])
def test_a_history_that_goes_on_has_the_inputs_of_its_continuation(
    urls: dict[int, str], max_length: int, moment: int | None
) -> None:
    """`after_last` on rows without their last event = predicting that event on the whole rows."""
    url = urls[70]
    manifest = load_manifest(url)
    items = load_items(url, manifest)
    whole = next(reader(url, evaluate=True, buffer=10**9).rows())
    short = next(reader(url, evaluate=True, buffer=10**9).rows())
    places = ranges(short.offsets[:-1], short.lengths - 1)
    columns = {name: column.take(places) for name, column in short.columns.items()}
    short = replace(short, offsets=offsets_of(short.lengths - 1), columns=columns)
    whole.targets[:] = 1
    expected = BatchBuilder(manifest, items, max_length, windows=True, with_seen=True).build(whole)
    found = BatchBuilder(
        manifest, items, max_length, windows=True, with_seen=True, after_last=True, moment=moment
    ).build(short)
    asked = torch.zeros(found.tokens, dtype=torch.bool)
    asked[found.target_position_Q] = True
    assert (found.request_time_T[asked] == (manifest.last_time if moment is None else moment)).all()
    assert torch.equal(found.request_time_T[~asked], expected.request_time_T[~asked])
    for name in ("lengths_B", "item_T", "time_T", "position_T", "target_position_Q", "row_Q"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    assert isinstance(found.seen, Lists)
    assert isinstance(expected.seen, Lists)
    assert found.seen.values.tolist() == expected.seen.values.tolist()
    assert found.seen.lengths.tolist() == expected.seen.lengths.tolist()
    assert found.target_Q.tolist() == [0] * len(whole)
    assert found.users == expected.users
    assert found.labels == {}


def test_a_model_without_features_reads_no_columns_of_them(data: Data) -> None:
    """The same batches but for features and intents."""
    config = train_config().reader
    plain, full = (
        Reader(data.url, data.manifest, data.items, "train", config, features=features) for features in (False, True)
    )
    assert plain.columns == ["targets", "item", "time", "duration"]
    assert set(full.columns) == {*plain.columns, "action", "tags", "scroll", "device"}
    for (batch, left), (whole, also_left) in zip(plain.epoch(0), full.epoch(0), strict=True):
        assert left.blocks() == also_left.blocks()
        assert batch.features == batch.labels == batch.request == {}
        assert set(whole.labels) == {"action", "genres", "content_type", "release_age"}
        for name in ("item_T", "time_T", "target_Q", "weight_Q", "target_position_Q"):
            assert torch.equal(getattr(batch, name), getattr(whole, name))
