"""The configs that are shipped, on a part of the real logs that they are for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.cli import main
from tests.cluster.conftest import real_data, results_of
from tests.cluster.readme import ROOT

UNTIL = {"globo": "2017-10-01T08:00", "retailrocket": "2015-05-10T00:00"}
"""Of real logs, which are tried in parts."""
USERS = {"ml-1m": 30, "ml-100k": 6, "kuairand": 40}
"""Of each so many users one is taken."""


def part_of(folder: Path, users: int, part: Path) -> Path:
    """A copy of a real log with one of each so many `users`, and with all items."""
    part.mkdir()
    for path in folder.glob("*.parquet"):
        rows = pq.read_table(path)
        if path.stem in ("events", "interactions"):
            rows = rows.filter(pa.array(rows["user_id"].to_numpy() % users == 0))
        pq.write_table(rows, part / path.name)
    return part


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ("retailrocket", ["events.parquet"]),
        ("kuairand", ["events.parquet", "items.parquet"]),
        ("ml-100k", ["interactions.parquet", "items.parquet"]),
        ("ml-1m", ["interactions.parquet", "items.parquet"]),
        ("globo", ["events.parquet", "items.parquet"]),
    ],
)
def test_shipped_configs_run_on_real_data(config: str, files: list[str], tmp_path: Path) -> None:
    folder = real_data(config)
    if config in USERS:
        folder = part_of(folder, USERS[config], tmp_path / "part")
    source = (
        [f"import.source={folder}"]
        if config.startswith("ml-")
        else [f"data.{name.split('.')[0]}={folder / name}" for name in files]
    )
    quick = ["train.epochs=1", "train.tables.dimension=16", "train.reader.max_length=10", "train.reader.windows=false"]
    overrides = [
        *source,
        *quick,
        "train.loss={kind: sampled, negatives: 64}",
        f"storage={tmp_path}",
        "evaluate.resamples=200",
        "cluster.threads=1",
    ]
    if config in UNTIL:
        overrides.append(f"data.until={UNTIL[config]}")
    if config == "globo":  # its whole test day is a hundred thousand targets
        overrides.append("data.split.test=15m")
    assert main(["run", str(ROOT / "configs" / f"{config}.yaml"), *overrides, "--no-ray"]) == 0
    assert results_of(tmp_path / config)["models"]["intentrec"]["metrics"]["HR@20"] > 0
