"""The examples of docs/evaluation.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from evaluation.metrics import METRICS, target_values
from evaluation.targets import TargetWriter

QUERY, METRIC = re.findall(r"```python\n(.*?)```", Path("docs/evaluation.md").read_text(), re.DOTALL)


def test_the_query_gives_what_a_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "demo" / "targets" / "intentrec"
    folder.mkdir(parents=True)
    rows = [{"user": n, "place": 3, "rank": n % 13, "hit_action": [True, False, None][n % 3]} for n in range(60)]
    pl.DataFrame(rows).write_parquet(folder / "part-00000.parquet")
    monkeypatch.chdir(tmp_path)
    exec(QUERY, {})
    printed = capsys.readouterr().out
    for hit in (True, False, None):
        ranks = [row["rank"] for row in rows if row["hit_action"] is hit]
        share = sum(0 < rank <= 10 for rank in ranks) / len(ranks)
        name = "null" if hit is None else str(hit).lower()
        found = re.search(rf"{name} +┆ {len(ranks)} +┆ ([\d.]+)", printed)
        assert found is not None
        assert float(found[1]) == share


def test_the_metric_is_counted() -> None:
    try:
        exec(METRIC, {})
        ranks = pl.Series([0, 1, 3, 4]).to_numpy()
        assert target_values(ranks, "HR@3").tolist() == [0.0, 1.0, 1.0, 0.0]
    finally:
        METRICS.pop("HR@3", None)


def test_the_columns_are_those_of_the_files() -> None:
    """The table of the docs and the docstring that says what a file holds."""
    documented = re.findall(r"^\| `([a-z_<>]+)` \| ", Path("docs/evaluation.md").read_text(), re.MULTILINE)
    module = __import__(TargetWriter.__module__, fromlist=["__doc__"])
    assert documented == re.findall(r"^    ([a-z_<>]+)  ", module.__doc__, re.MULTILINE)
