"""Kinds of feature of one's own: one class and one line of registration, from the config to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from ingest.data.batch import Batch
from ingest.data.items import load_items
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from ingest.data.schema import DataConfig
from ingest.features.category import Category
from ingest.features.feature import Base, Feature, Fitted, Kind, LookUp, PreparedFeature, prepared, register
from ingest.prepare import pipeline
from ingest.prepare.pipeline import prepare
from ingest.prepare.tasks import Call
from ingest.raw import columns as raw

START, HOUR = 1_600_000_000_000, 3_600_000


@register("hour")
class Hour(Category):
    """The hour of the day of a moment, as a category."""

    takes = frozenset()

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return columns[feature.source].moments(time_unit) // HOUR % 24


@register("sign")
class Sign(Kind):
    """A number's sign: nothing is learned, and the labels are the same for every log."""

    def in_bins(self, feature: Feature | PreparedFeature) -> bool:
        return True

    def learns(self, feature: Feature) -> bool:
        return False

    def read(self, feature: Feature, columns: Mapping[str, raw.Column], time_unit: str) -> pl.Series:
        return columns[feature.source].numbers()

    def fit(self, feature: Feature, counted: pl.DataFrame | None, base: Base | None) -> Fitted:
        rows = pl.DataFrame({"value": [None, None, "negative", "zero", "positive"], "count": [0] * 5})
        index = pl.int_range(5, dtype=pl.Int32).alias("index")
        return Fitted(prepared(feature, 5), rows.select("value", index, "count"))

    def encode(self, feature: PreparedFeature, values: pa.Array, look_up: LookUp) -> pa.Array:
        sign: NDArray[np.float64] = np.sign(values.to_numpy(zero_copy_only=False))
        return pa.array(np.where(np.isnan(sign), 1, sign + 3).astype(np.int32))


@pytest.fixture
def log(tmp_path: Path) -> DataConfig:
    rng = np.random.default_rng(3)
    rows = 300
    moments = START + rng.integers(0, 24 * 30, rows) * HOUR
    change = np.where(rng.random(rows) < 0.1, np.nan, rng.integers(-2, 3, rows))
    table = {"user_id": rng.integers(0, 20, rows), "item_id": rng.integers(0, 15, rows)}
    table |= {"timestamp": START + np.arange(rows), "opened": moments, "change": pa.array(change, from_pandas=True)}
    pq.write_table(pa.table(table), tmp_path / "events.parquet")
    items = {
        "item_id": np.arange(12),
        "shown": START + rng.integers(0, 24, 12) * HOUR,
        "trend": rng.integers(-1, 2, 12),
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    features = [
        {"name": "opened", "kind": "hour", "intent": True},
        {"name": "change", "kind": "sign"},
        {"name": "shown", "kind": "hour", "of": "item", "min_count": 2},
        {"name": "trend", "kind": "sign", "of": "item", "intent": True},
    ]
    content = {"events": str(tmp_path / "events.parquet"), "items": str(tmp_path / "items.parquet"), "time_unit": "ms"}
    return DataConfig.model_validate(content | {"features": features, "partition_events": 100})


def expected_of(config: DataConfig) -> dict[int, dict[str, Any]]:
    """The values that each event, which its time names, has to have; None where unknown."""
    items = {row["item_id"]: row for row in pq.read_table(config.items).to_pylist()}
    nothing = {"shown": None, "trend": None}

    def hour(moment: int | None) -> str | None:
        return None if moment is None else str(moment // HOUR % 24)

    def sign(number: float | None) -> str | None:
        return None if number is None else "negative" if number < 0 else "positive" if number > 0 else "zero"

    events = pq.read_table(config.events).to_pylist()
    known = Counter(hour(row["shown"]) for row in items.values())
    found = {}
    for row in events:
        item = items.get(row["item_id"], nothing)
        shown = hour(item["shown"])
        found[row["timestamp"]] = {
            "opened": hour(row["opened"]),
            "change": sign(row["change"]),
            "shown": shown if known[shown] >= 2 else None,
            "trend": sign(item["trend"]),
        }
    return found


def test_a_kind_of_ones_own_goes_from_the_config_to_a_batch(tmp_path: Path, log: DataConfig) -> None:
    out = str(tmp_path / "data")
    manifest = prepare(log, out, lambda _: None)
    expected = expected_of(log)
    reader = Reader(out, manifest, load_items(out, manifest), "test", ReaderConfig(), evaluate=True)
    names = {f.name: pq.read_table(f"{out}/vocab/{f.name}.parquet")["value"].to_pylist() for f in manifest.features}
    batches: list[Batch] = [batch for batch, _ in reader.epoch(0)]
    seen = 0
    for batch in batches:
        for name, values in batch.features.items():
            for time, index in zip(batch.time_T.tolist(), values.tolist(), strict=True):  # type: ignore[union-attr]
                assert names[name][index] == (expected[time][name] or "<unknown>")
                seen += 1
        assert set(batch.labels) == {"opened", "trend"}
        assert batch.target_time_Q is not None
        for name, values in batch.labels.items():
            for time, index in zip(batch.target_time_Q.tolist(), values.tolist(), strict=True):  # type: ignore[union-attr]
                assert index == 1 or names[name][index] == expected[time][name]
    assert seen > 4 * 200
    empty = reader.builder.empty()
    assert empty.features["change"].tolist() == [0]  # type: ignore[union-attr]
    trained = pq.read_table(f"{out}/vocab/change.parquet").to_pylist()
    assert sum(row["count"] for row in trained) == manifest.counts["training_events"]
    assert set(manifest.majority) == {"opened", "trend"}


class InAnotherProcess:
    """Runs calls in a process that has imported nothing, as a cluster's workers have not."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool

    def run(self, calls: Sequence[Call], description: str) -> None:
        list(self.pool.map(Call.__call__, calls))


def test_other_processes_know_kinds_of_ones_own(tmp_path: Path, log: DataConfig, monkeypatch: Any) -> None:
    monkeypatch.setattr(pipeline, "FEWEST_PARTITIONS", 1)
    monkeypatch.setattr(pipeline, "PARTITIONS_A_TASK", 2)
    here = prepare(log, str(tmp_path / "here"), lambda _: None)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert prepare(log, str(tmp_path / "there"), lambda _: None, InAnotherProcess(pool)) == here


def test_a_kind_refuses_the_keys_that_it_does_not_take() -> None:
    for key, value in {"bins": 3, "first_of": {"a": "b"}, "unit": "year", "since_first_event": True}.items():
        with pytest.raises(ValueError, match="kind hour does not take it"):
            Feature.model_validate({"name": "opened", "kind": "hour", key: value})


def test_a_kind_that_nobody_registered_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"category, categories, number, elapsed.*hour"):
        Feature.model_validate({"name": "opened", "kind": "minute"})


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'hour' is registered twice"):
        register("hour")(Hour)
