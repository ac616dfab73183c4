"""A source of one's own is one class; reading a config of a source imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from ingest.data.schema import DataConfig
from ingest.prepare.pipeline import prepare
from ingest.sources.registry import SOURCES, Source, register
from ingest.storage import join, open_file


@pytest.fixture
def countdown() -> type[Source]:
    @register
    class Countdown(Source):
        kind: Literal["countdown"] = "countdown"
        users: int = 3

        def make(self, destination: str) -> dict[str, Any]:
            rows = [(user, item, 10 * user + item) for user in range(self.users) for item in range(5, 0, -1)]
            log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
            for path, frame in ((self.events_path, log), (self.items_path, log.select("item_id").unique())):
                with open_file(join(destination, path), "wb") as file:
                    frame.write_parquet(file)
            return {"users": self.users, "events": log.height}

    return Countdown


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    before = dict(SOURCES.found)
    yield
    SOURCES.found = before


def test_a_source_of_ones_own(countdown: type[Source], tmp_path: Path) -> None:
    source = SOURCES["countdown"].model_validate({"users": 4})
    assert source.make(str(tmp_path)) == {"users": 4, "events": 20}
    config = DataConfig(events=str(tmp_path / source.events_path), time_unit="position")
    assert prepare(config, str(tmp_path / "out"), lambda _: None).counts["users"] == 4
    with pytest.raises(ValueError, match="'countdown' is registered twice"):
        register(countdown)


def test_a_kind_that_is_none(countdown: type[Source]) -> None:
    with pytest.raises(ValueError, match="takes a data source: simulate, movielens, countdown"):
        SOURCES["netflix"]


def test_sources_import_no_torch() -> None:
    code = (
        "import sys; from ingest.sources.registry import SOURCES\n"
        "assert not any(name in sys.modules for name in ('ingest.sources.simulate', 'pyarrow.csv'))\n"
        "SOURCES['simulate'](); SOURCES['movielens'](source='a')\n"
        "assert not any(name in sys.modules for name in ('torch', 'torchrec', 'ray'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
