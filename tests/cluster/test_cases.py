"""Inputs that failed once, where their folder is beside the checkout: each is read right now, or told in a sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from cluster.cli import main
from tests.cluster.readme import ROOT

CASES = Path(os.environ.get("INTENTREC_CASES", ROOT.parent / "shared" / "cases"))
INTENTREC = [sys.executable, "-m", "cluster.cli"]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the case that the test is named for, which is made, and is the current folder."""
    source = CASES / request.param
    if not source.is_dir():
        pytest.skip(f"{source} is not there: set INTENTREC_CASES")
    folder = tmp_path / request.param
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    subprocess.run([sys.executable, "make.py"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [name], indirect=True)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@of("01-int96-sentinel-date")
def test_a_far_date_is_the_date_that_it_says(case: Path) -> None:
    assert main(["prepare", "config.yaml", "--no-ray"]) == 0
    counts = dict(pl.read_parquet("runs/r/data/vocab/age.parquet").select("value", "count").iter_rows())
    assert (counts["new"], counts["ancient"]) == (247, 0)


@of("02-feature-called-type")
def test_a_feature_may_be_called_type(case: Path) -> None:
    assert main(["run", "config.yaml", "--no-ray"]) == 0


@of("03-linked-folder-left-out")
def test_a_linked_folder_is_read(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "config.yaml", "--no-ray"]) == 0
    rows = pl.read_parquet("events/a.parquet").height + pl.read_parquet("elsewhere/b.parquet").height
    assert f", {rows} events," in capsys.readouterr().out


@of("05-min-item-count-too-high")
def test_no_item_that_is_left_is_told_at_prepare(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "config.yaml", "--no-ray"]) == 2
    assert "no item has 100000 training events (data.min_item_count)" in told(capsys)


@of("06-long-tmpdir")
def test_a_long_tmpdir_is_told_before_ray_starts(case: Path) -> None:
    folder = case / ("a" * 52) / ("b" * 52)
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([*INTENTREC, "run", "config.yaml", "--workers", "1"], capture_output=True, text=True,
                          env=environment | {"TMPDIR": str(folder)})  # fmt: skip
    assert done.returncode == 2
    assert re.search(rf"^intentrec: TMPDIR {folder}: .* set a shorter TMPDIR or RAY_TMPDIR$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


@of("07-tilde-in-events")
def test_a_tilde_is_the_home_folder(case: Path) -> None:
    assert main(["prepare", "config.yaml", "--no-ray"]) == 0


@of("08-two-runs-at-once")
def test_of_two_runs_at_once_one_is_made_and_one_is_refused(case: Path) -> None:
    command = [*INTENTREC, "run", "config.yaml", "--no-ray"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    (refusal,) = [errors for process, (_, errors) in zip(both, outputs, strict=True) if process.returncode]
    assert "this run is being made by another process" in refusal.splitlines()[-1]


@of("10-model-name-leaves-the-run")
def test_a_models_name_does_not_leave_the_run(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "config.yaml", "--no-ray"]) == 2
    assert "models: the name of a model takes letters" in told(capsys)
    assert not (case / "runs").exists()


@of("12-config-is-a-folder")
def test_a_config_that_is_a_folder_is_told(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", ".", "--no-ray"]) == 2
    assert told(capsys) == "intentrec: .: is a folder; name a config file"
