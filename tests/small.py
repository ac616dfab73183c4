"""A small log prepared for tests, and how they build steps, batches and trainers on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

import embeddings.sharding
import trainer.pieces
from embeddings.sharding import table_states
from embeddings.table_config import table_of
from embeddings.workers import Worker, gather_objects, single_process
from evaluation.evaluate import validate
from ingest.arrays.jagged import offsets_of, ranges
from ingest.data.batch import Batch
from ingest.data.builder import BatchBuilder
from ingest.data.items import load_items
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.reader import Reader
from ingest.data.schema import DataConfig
from ingest.data.shards import StoredRows
from ingest.features.feature import UNKNOWN
from ingest.prepare.pipeline import prepare
from ingest.sources.simulate import SimulateConfig
from trainer.candidates import Known
from trainer.loop import Run, Trainer
from trainer.models.intentrec import IntentRecConfig
from trainer.models.registry import NeuralConfig
from trainer.step import Step
from trainer.train_config import TrainConfig

START, HOUR = 1_600_000_000_000, 3_600_000
FEATURES = [
    {"name": "action", "intent": True},
    {"name": "tags", "kind": "categories"},
    {"name": "scroll", "kind": "number"},
    {"name": "device", "at_request": True},
    {"name": "genres", "kind": "categories", "of": "item", "intent": True},
    {"name": "content_type", "of": "item", "intent": True},
    {"name": "release_age", "kind": "elapsed", "of": "item", "column": "released", "bins": ["7d", "30d"],
     "intent": True},
]  # fmt: skip
MODEL = IntentRecConfig(heads=2, dropout=0.0, window="8h")


BLOCK_ROWS = 16
"""StoredRows that are drawn at once, so that the small tables have several blocks."""
PIECE_BYTES = 256
"""Bytes of a tensor that a checkpoint holds in one piece, so that the small tables have several."""


@contextmanager
def small_pieces(piece_bytes: int = PIECE_BYTES) -> Iterator[None]:
    """Tables are drawn and saved in small pieces, as in all tests."""
    before = embeddings.sharding.BLOCK_ROWS, trainer.pieces.PIECE_BYTES
    embeddings.sharding.BLOCK_ROWS, trainer.pieces.PIECE_BYTES = BLOCK_ROWS, piece_bytes
    try:
        yield
    finally:
        embeddings.sharding.BLOCK_ROWS, trainer.pieces.PIECE_BYTES = before


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone, with one thread."""
    torch.set_num_threads(1)
    with small_pieces(), single_process(torch.device("cpu")):
        yield


def make_data(
    folder: Path, users: int = 60, items: int = 40, row_group: int = 100, split: dict[str, str] | None = None
) -> str:
    """A seeded log with tied times, missing values and targets that training never saw, prepared.

    Besides `users` with 4 events or more there is one with a single event and one with two.
    """
    rng = np.random.default_rng(7)
    popular = 1 / np.arange(1, items + 1)
    events: list[dict[str, Any]] = []
    for user in range(users + 2):
        length = int(rng.integers(4, 26)) if user < users else user - users + 1
        times = START + np.cumsum(rng.integers(0, 12, length)) * HOUR
        chosen = rng.choice(items, length, p=popular / popular.sum())
        if user % 15 == 0:
            chosen[-1] = items + user
        for item, time in zip(chosen, times, strict=True):
            events.append(
                {
                    "user_id": user,
                    "item_id": int(item),
                    "timestamp": int(time),
                    "seconds": float(rng.integers(1, 9)),
                    "action": [None, "play", "browse", "search"][rng.integers(4)],
                    "tags": list("abc"[: rng.integers(4)]),
                    "scroll": float(rng.normal()),
                    "device": f"d{(user + 2 * int(item)) % 3}",
                }
            )
    attributes = [
        {
            "item_id": item,
            "genres": [f"g{g}" for g in rng.choice(6, rng.integers(0, 4), replace=False)],
            "content_type": ["film", "series"][rng.integers(2)],
            "released": None if item % 9 == 0 else START - int(rng.integers(0, 60)) * 24 * HOUR,
        }
        for item in range(items)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    moment = pa.timestamp("ms")
    for name, rows, column in (("events", events, "timestamp"), ("items", attributes, "released")):
        table = pa.Table.from_pylist(rows)
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, table[column].cast(moment)), folder / f"{name}.parquet")
    config = {
        "events": str(folder / "events.parquet"),
        "items": str(folder / "items.parquet"),
        "duration": "seconds",
        "features": FEATURES,
        "split": split or {},
        "row_group_interactions": row_group,
        "shard_interactions": 4 * row_group,
    }
    prepare(DataConfig.model_validate(config), str(folder / "data"), lambda _: None)
    return str(folder / "data")


def make_simulated(folder: Path, **changes: Any) -> str:
    """A log of `simulate`, in folder/log, prepared in folder/data."""
    config = SimulateConfig(**{"users": 240, "items": 150, "days": 30, "user": {"sessions": 8.0}, "seed": 4} | changes)
    config.make(str(folder / "log"))
    log = {"events": str(folder / "log" / "events"), "items": str(folder / "log" / "items")}
    prepare(DataConfig.model_validate(log), str(folder / "data"), lambda _: None)
    return str(folder / "data")


def train_config(**changes: Any) -> TrainConfig:
    """A small `train` section; the sections in it are laid over the small ones."""
    base: dict[str, Any] = {
        "epochs": 2,
        "learning_rate": 1e-2,
        "clip_norm": 5.0,
        "log_steps": 1,
        "unknown_share": 0.1,
        "reader": {"tokens": 60, "max_length": 20, "shuffle_buffer": 200},
        "tables": {"dimension": 8, "learning_rate": 0.1, "optimizer": "adagrad"},
        "loss": {"kind": "full", "scores_at_once": 64},
    }
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return TrainConfig.model_validate(base)


def take_rows(rows: StoredRows, index: Any) -> StoredRows:
    """The rows `index` alone."""
    places = ranges(rows.offsets[index], rows.lengths[index])
    return StoredRows(
        [rows.users[i] for i in index] if rows.users else [],
        rows.targets[index],
        offsets_of(rows.lengths[index]),
        {name: column.take(places) for name, column in rows.columns.items()},
    )


class Data:
    """A prepared data set opened for building batches by hand."""

    def __init__(self, url: str, max_length: int = 20) -> None:
        self.url, self.manifest = url, load_manifest(url)
        self.items = load_items(url, self.manifest)
        self.known = Known(url, self.items)
        self.builder = BatchBuilder(self.manifest, self.items, max_length, False)

    def reader(
        self,
        split: Any = "train",
        worker: Worker | None = None,
        evaluate: bool = False,
        after_last: bool = False,
        **settings: Any,
    ) -> Reader:
        worker = worker or Worker()
        config = train_config(reader=settings).reader
        return Reader(self.url, self.manifest, self.items, split, config,
                      rank=worker.rank, workers=worker.workers, evaluate=evaluate, after_last=after_last)  # fmt: skip

    @functools.cached_property
    def rows(self) -> StoredRows:
        """All training rows."""
        (rows,) = self.reader(shuffle_buffer=10**9).rows()
        return rows

    def batch(self, index: Any) -> Batch:
        """The batch of the training rows `index`; the empty one where there are none."""
        index = np.asarray(index, dtype=np.int64)
        return self.builder.build(self.rows, index) if len(index) else self.builder.empty()


def partly_unknown(batch: Batch) -> Batch:
    """The batch with some items unknown among its targets, the same on any number of workers."""
    return replace(batch, target_Q=batch.target_Q.masked_fill(batch.target_Q % 5 == 3, UNKNOWN))


def make_step(
    manifest: Manifest,
    worker: Worker | None = None,
    model: NeuralConfig = MODEL,
    counts: NDArray | None = None,
    known: Known | None = None,
    **changes: Any,
) -> Step:
    return Step(model, train_config(**changes), manifest, worker or Worker(), counts, known)


def weights(step: Step) -> dict[str, Tensor]:
    """Every weight whole, tables put together from all workers' shards in the order of their values."""
    whole = {}
    for table, value in table_states(step.parallel):
        local = value.local_shards() if hasattr(value, "local_shards") else None
        if local is None:
            whole[table] = value.detach().clone()
            continue
        full = torch.full(tuple(value.size()), torch.nan)
        own = [(shard.metadata.shard_offsets, shard.tensor.detach().clone()) for shard in local]
        for (row, column), part in (shard for shards in gather_objects(own) for shard in shards):
            full[row : row + part.shape[0], column : column + part.shape[1]] = part
        spread = step.recommender.tables.spreads.get(table)
        whole[table] = full if spread is None else full[spread.rows(torch.arange(len(full)))]
    return whole | dense(step)


def softmax_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [13, 4], an item table [20, 4], known targets and weights, in float64."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    items = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(2, 20, (13,), generator=generator)
    weight = torch.rand(13, generator=generator, dtype=torch.float64)
    return query.requires_grad_(), items.requires_grad_(), target, weight


def pointed_case(target: Tensor) -> tuple[Tensor, Tensor]:
    """Of six candidates of each target of `softmax_case`, some padding, the logits and whether they are the target."""
    generator = torch.Generator().manual_seed(4)
    item = torch.randint(0, 20, (len(target), 6), generator=generator)
    item[::2, 1:3] = target[::2, None]
    logit = torch.randn(len(target), 6, generator=generator, dtype=torch.float64).masked_fill(item < 2, -torch.inf)
    logit[5] = -torch.inf  # this one has no candidates at all
    return logit.requires_grad_(), item == target[:, None]


def dense(step: Step, gradients: bool = False) -> dict[str, Tensor]:
    """The network's weights or gradients. Biases to which a softmax is blind have no gradient but rounding: 0."""
    found = {}
    for name, parameter in step.dense.items():
        if table_of(name) is not None:
            continue
        value = (parameter.grad if gradients else parameter).detach().clone()  # type: ignore[union-attr]
        if name.endswith("attention.qkv.bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
        if name.endswith("network.attention.bias"):
            value.zero_()
        found[name.replace("module.", "")] = value
    return found


def same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Assert that two sets of tensors are equal, or close."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


class Stopped(Exception):  # noqa: N818
    """What a training process dies of in a test."""


@contextmanager
def watched(stop_after: int | None = None, last: Callable[[], object] = lambda: None) -> Iterator[list[Batch]]:
    """Note the batch of every step taken inside; call `last` and raise `Stopped` in place of the step after
    `stop_after`."""
    taken: list[Batch] = []
    original = Step.train

    def train(self: Step, batch: Batch, *step: Any) -> Any:
        if len(taken) == stop_after:
            last()
            raise Stopped
        taken.append(batch)
        return original(self, batch, *step)

    Step.train = train  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        Step.train = original  # type: ignore[method-assign]


def make_trainer(
    data: str, folder: Path | str, worker: Worker | None = None, model: NeuralConfig = MODEL, **changes: Any
) -> Trainer:
    """A trainer that validates by ranking the catalogue."""
    worker = worker or Worker()
    reader = Data(data).reader("validation", worker, evaluate=True)
    check = functools.partial(validate, reader=reader, worker=worker, filter_seen=False)
    run = Run("model", model, train_config(**changes), data, str(folder), "epochs: 2")
    return Trainer(run, worker, check)


def inputs_of(batches: list[Batch]) -> list[tuple[int, int]]:
    """Time and item of every input token of `batches`, sorted: what was trained on."""
    real = [batch for batch in batches if batch.rows]
    times = [time for batch in real for time in batch.time_T.tolist()]
    items = [item for batch in real for item in batch.item_T.tolist()]
    return sorted(zip(times, items, strict=True))
