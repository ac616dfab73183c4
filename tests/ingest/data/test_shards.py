"""Damaged shards: each kind is refused with shard, row group, column and value, or set aside and counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.data.items import load_items
from ingest.data.manifest import VERSION, load_manifest
from ingest.data.order import Position
from ingest.data.reader import Reader
from ingest.errors import DamagedShardError
from tests.small import train_config

Rows = list[dict[str, Any]]
GROUP = 1
"""The row group of the first training shard that is damaged."""


def rewritten(path: Path, change: Callable[[Rows], None], metadata: dict[bytes, bytes] | None = None) -> None:
    """Write the shard again, its row group `GROUP` changed, all else as it was."""
    file = pq.ParquetFile(path)
    schema = pa.schema(
        [pa.field(field.name, _nullable(field.type)) for field in file.schema_arrow],
        metadata=file.schema_arrow.metadata if metadata is None else metadata,
    )
    groups = [file.read_row_group(group).to_pylist() for group in range(file.num_row_groups)]
    change(groups[GROUP])
    file.close()
    with pq.ParquetWriter(path, schema, write_page_checksum=True, use_dictionary=False) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))


def _nullable(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", _nullable(kind.value_type))) if pa.types.is_list(kind) else kind


def put(column: str, value: Any, row: int = 2, at: int = 1) -> Callable[[Path], None]:
    """Damage that replaces one value of a list column."""

    def change(rows: Rows) -> None:
        rows[row][column][at] = value

    return lambda path: rewritten(path, change)


def with_row(column: str, value: Callable[[Any], Any], row: int = 2) -> Callable[[Path], None]:
    def change(rows: Rows) -> None:
        rows[row][column] = value(rows[row][column])

    return lambda path: rewritten(path, change)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flipped(path: Path) -> None:
    """A bit of a data page of row group `GROUP`, where only the page's checksum can tell."""
    column = pq.ParquetFile(path).metadata.row_group(GROUP).column(3)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 4
    path.write_bytes(content)


def another_version(path: Path) -> None:
    rewritten(path, lambda rows: None, {b"intentrec.version": b"99"})


def shorter(path: Path) -> None:
    rewritten(path, lambda rows: rows.pop())


WHOLE_SHARD = {"truncated", "version", "gone"}
DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "truncated": (truncated, ["is damaged"]),
    "checksum": (flipped, [f"row group {GROUP} is damaged", "CRC"]),
    "version": (another_version, ["schema version 99", f"reads {VERSION}"]),
    "gone": (Path.unlink, ["is not there"]),
    "rows": (shorter, [f"row group {GROUP}", "rows", "the manifest says"]),
    "unequal": (with_row("action", lambda values: values[:-1]), [f"row group {GROUP}, row 2", "'action'", "'item'"]),
    "item index": (put("item", 10_000), [f"row group {GROUP}, row 2", "'item'", "10000", "0 to "]),
    "negative index": (put("action", -1), [f"row group {GROUP}, row 2", "'action'", "-1", "0 to "]),
    "nested index": (put("tags", [77]), [f"row group {GROUP}, row 2", "'tags'", "77"]),
    "nan": (put("scroll", float("nan")), [f"row group {GROUP}, row 2", "'scroll'", "nan", "finite"]),
    "infinite duration": (put("duration", float("inf")), [f"row group {GROUP}, row 2", "'duration'", "inf"]),
    "null list": (with_row("time", lambda _: None), [f"row group {GROUP}", "'time'", "no value"]),
    "null value": (put("time", None), [f"row group {GROUP}", "'time'", "missing"]),
    "targets": (with_row("targets", lambda _: 500), [f"row group {GROUP}, row 2", "'targets'", "500"]),
}


def reader(url: str, **settings: Any) -> Reader:
    manifest = load_manifest(url)
    config = train_config(reader=settings).reader
    return Reader(url, manifest, load_items(url, manifest), "train", config)


def users(folder: str) -> list[int]:
    """The first time of each training row: it names the row well enough to count by."""
    paths = sorted(Path(folder, "train").glob("*.parquet"))
    return sorted(time for path in paths for row in pq.read_table(path).to_pylist() for time in row["time"][:-1])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_or_set_aside(kind: str, prepared: dict[str, str], tmp_path: Path) -> None:
    url = str(shutil.copytree(prepared["data"], tmp_path / "data"))
    manifest = load_manifest(url)
    shard = manifest.shards["train"][0]
    path = Path(url, shard.path)
    lost_groups = list(range(len(shard.row_groups))) if kind in WHOLE_SHARD else [GROUP]
    file = pq.ParquetFile(path)
    lost = [
        time
        for group in lost_groups
        for row in file.read_row_group(group).to_pylist()
        for time in row["time"][:-1][-20:]
    ]
    file.close()
    everything = sorted(time for batch, _ in reader(url).epoch(0) for time in batch.time_T.tolist())
    damage, words = DAMAGE[kind]
    damage(path)

    with pytest.raises(DamagedShardError) as error:
        list(reader(url).epoch(0))
    for word in [shard.path, *words]:
        assert word in str(error.value)

    found = reader(url, on_bad_shard="skip")
    for epoch in (0, 1):
        times = [time for batch, _ in found.epoch(epoch) for time in batch.time_T.tolist()]
        assert sorted(times + lost) == everything
    assert {(entry.path, entry.row_group, entry.rows) for entry in found.skipped} == {
        (shard.path, group, shard.row_groups[group][0]) for group in lost_groups
    }
    assert len(found.skipped) == 2 * len(lost_groups)


def test_a_resumed_epoch_sets_the_same_row_groups_aside(prepared: dict[str, str], tmp_path: Path) -> None:
    url = str(shutil.copytree(prepared["data"], tmp_path / "data"))
    put("scroll", float("nan"))(Path(url, load_manifest(url).shards["train"][0].path))
    found = reader(url, on_bad_shard="skip")
    whole = list(found.epoch(0))
    for stop in range(1, len(whole)):
        position = Position(0, (whole[stop - 1][1].blocks(),))
        resumed = [batch.time_T.tolist() for batch, _ in found.epoch(0, position)]
        assert resumed == [batch.time_T.tolist() for batch, _ in whole[stop:]]


def test_what_is_whole_beside_a_shard_that_is_not_is_read(prepared: dict[str, str], tmp_path: Path) -> None:
    """By baselines, which take all rows as they are stored, and by who writes users in the log's own type."""
    shutil.copytree(prepared["data"], tmp_path / "data")
    url = str(tmp_path / "data")
    shards = load_manifest(url).shards["train"]
    assert len(shards) > 1
    whole = reader(url)
    kept = [user for rows in whole.rows() for user in rows.users]
    kind = whole.source.user_type()
    lost = pq.read_table(tmp_path / "data" / shards[0].path)["user"].to_pylist()
    Path(url, shards[0].path).unlink()
    found = reader(url, on_bad_shard="skip", shuffle_buffer=1)
    parts = list(found.rows())
    assert all("item" in rows.columns for rows in parts)
    assert sorted(user for rows in parts for user in rows.users) == sorted(set(kept) - set(lost))
    assert found.source.user_type() == kind
    for shard in shards[1:]:
        truncated(Path(url, shard.path))
    with pytest.raises(DamagedShardError, match="neither this shard nor any other one of its split can be read"):
        reader(url, on_bad_shard="skip").source.user_type()
