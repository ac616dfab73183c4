"""Requests are read as the log is, and each is that of its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.reader import Reader
from ingest.data.requests import Requests, read_requests
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from tests.small import FEATURES, HOUR, START, Data, train_config

CONFIG = DataConfig.model_validate({"events": "events", "items": "items", "duration": "seconds", "features": FEATURES})


def read(folder: Path, data: Data, rows: list[dict[str, Any]], **without: str) -> Requests:
    table = pa.Table.from_pylist(rows)
    at = table.schema.get_field_index("timestamp")
    table = table.set_column(at, "timestamp", table["timestamp"].cast(pa.timestamp("ms")))
    pq.write_table(table.drop_columns(list(without.values())), folder / "requests.parquet")
    return read_requests(str(folder), CONFIG, data.manifest, data.url)


ROWS = [
    {"user_id": user, "timestamp": START + 1000 * HOUR + user, "device": device, "note": "of no interest"}
    for user, device in ((5, "d0"), (61, "d2"), (3, None), (900, "d1"), (40, "never seen"))
]


def test_only_users_who_ask_are_there_each_with_its_request(data: Data, tmp_path: Path) -> None:
    requests = read(tmp_path, data, ROWS)
    devices = pq.read_table(Path(data.url, "vocab", "device.parquet"))["value"].to_pylist()
    found = {}
    for split in ("test", "rest"):
        config = train_config().reader
        reader = Reader(data.url, data.manifest, data.items, split, config, after_last=True, requests=requests)  # type: ignore[arg-type]
        for batch, _ in reader.epoch(0):
            asked = batch.target_position_Q
            for row, time, device in zip(
                batch.row_Q.tolist(), batch.request_time_T[asked], batch.request["device"][asked], strict=True
            ):
                found[batch.users[row]] = int(time), int(device)
    known = {row["user_id"]: row for row in ROWS if row["user_id"] != 900}
    assert found == {
        user: (row["timestamp"], devices.index(row["device"]) if row["device"] in devices[2:] else 1)
        for user, row in known.items()
    }
    assert len({device for _, device in found.values()}) == 3


def test_several_files_are_one_list_of_requests(data: Data, tmp_path: Path) -> None:
    read(tmp_path, data, ROWS[:2])
    (tmp_path / "requests.parquet").rename(tmp_path / "first.parquet")
    requests = read(tmp_path, data, ROWS[2:])
    assert requests.places([5, 61, 3, 900, 40, 7]).tolist() == [0, 1, 2, 3, 4, -1]
    assert requests.time_N.tolist() == [row["timestamp"] for row in ROWS]
    assert requests.features["device"].dtype == np.int32


@pytest.mark.parametrize(
    ("rows", "without", "message"),
    [
        (ROWS, {"drop": "device"}, "requests.parquet: no column 'device'; there are: user_id, timestamp, note"),
        ([*ROWS, ROWS[0]], {}, "column 'user_id' has the user 5 in 2 rows, takes one"),
        ([ROWS[0], ROWS[1] | {"timestamp": None}], {}, "requests.parquet: column 'timestamp' has no value in row 1"),
    ],
)
def test_bad_requests_are_named(
    data: Data, tmp_path: Path, rows: list[dict[str, Any]], without: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, data, rows, **without)


def test_a_folder_without_requests_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet files there"):
        read_requests(str(tmp_path), CONFIG, data.manifest, data.url)
