"""`data.until` leaves out stray last events and counts them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.schema import DataConfig, Split
from ingest.errors import InputError
from ingest.prepare.pipeline import prepare


def log(folder: Path) -> str:
    times = [datetime.datetime(2024, 1, day) for day in (1, 2, 3, 4)] * 2 + [datetime.datetime(2024, 3, 1)]
    users, items = [1] * 4 + [2] * 4 + [2], [1, 2, 3, 1, 2, 3, 1, 2, 9]
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), folder / "log.parquet")
    return str(folder / "log.parquet")


def test_events_after_until_are_left_out_and_counted(tmp_path: Path) -> None:
    split = Split(kind="point_in_time", validation="1d", test="1d")
    config = DataConfig(events=log(tmp_path), split=split, until=datetime.datetime(2024, 2, 1))
    manifest = prepare(config, str(tmp_path / "data"), log=lambda line: None)
    assert manifest.counts["events_left_out_by_until"] == 1
    assert manifest.counts["events"] == 8
    assert manifest.counts["test_targets"] == 2


def test_until_before_all_events_is_refused(tmp_path: Path) -> None:
    config = DataConfig(events=log(tmp_path), until=datetime.datetime(2020, 1, 1))
    with pytest.raises(InputError, match=r"data\.until 2020-01-01"):
        prepare(config, str(tmp_path / "data"), log=lambda line: None)
