"""The paper's tables: one row is run on a small log, kept, and not run again; pages are made of what is kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.paper import main, sections
from benchmarks.paper_tables import AGAINST_TRANSACT, AGAINST_V1, NAMES, PAPER_ROWS, p_of, tables
from benchmarks.results import PAGE, made
from cluster.config import Config
from ingest.errors import InputError
from ingest.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
LOG: dict[str, Any] = {
    "name": "tiny",
    "simulate": {"users": 60, "items": 40, "days": 20, "seed": 3},
    "data": {"features": [{"name": "action", "intent": True}, {"name": "content_type", "of": "item", "intent": True}]},
    "train": {"epochs": 1, "reader": {"max_length": 20}, "tables": {"dimension": 8}, "loss": {"kind": "full"}},
    "models": {
        "intentrec": {"kind": "intentrec", "window": "1d", "knows": ["request"]},
        "paper": {"kind": "intentrec", "window": "2d", "dropout": 0.2, "train": {"epochs": 1}},
        "popular": {"kind": "popularity"},
    },
    "evaluate": {"filter_seen": False, "resamples": 200},
    "cluster": {"workers": 1},
}


class Tiny:
    """The small log's tables in a folder."""

    def __init__(self, folder: Path) -> None:
        self.config, self.kept = folder / "tiny.yaml", folder / "results" / "paper"
        self.config.write_text(yaml.safe_dump(LOG))
        self.rows = folder / "runs" / "tiny-paper" / "kept"
        self.overrides = [f"storage={folder / 'runs'}"]

    def __call__(self, *words: str) -> Any:
        main([str(self.config), *self.overrides, "--no-ray", "--kept", str(self.kept), *words])
        return json.loads((self.kept / "tiny.json").read_text())


@pytest.fixture(scope="module")
def two_rows(tiny: Tiny) -> Any:
    """What is kept of two rows, one with two seeds."""
    return tiny("--rows", "intentrec,lstm")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One row is run; another one, and a second seed, are its copies."""
    found = Tiny(tmp_path_factory.mktemp("paper"))
    run = found("--rows", "intentrec")
    assert run["versus"] == {}
    results = json.loads((found.rows / "intentrec.seed-0.json").read_text())
    for copy, row in (("intentrec.seed-1", "intentrec"), ("lstm.seed-0", "lstm")):
        of = results | {"models": {copy: results["models"]["intentrec.seed-0"]}, "row": run["rows"][row]}
        (found.rows / f"{copy}.json").write_text(json.dumps(of))
        shutil.copytree(found.rows / "targets" / "intentrec.seed-0", found.rows / "targets" / copy)
    return found


def test_what_is_there_is_not_run_again_and_seeds_are_one_row(tiny: Tiny, request: pytest.FixtureRequest) -> None:
    times = {path: path.stat().st_mtime_ns for path in tiny.rows.glob("*.json")}
    run = request.getfixturevalue("two_rows")
    assert {path: path.stat().st_mtime_ns for path in tiny.rows.glob("*.json")} == times
    ours = run["models"]["intentrec"]
    assert (ours["seeds"], ours["deviation"]["MRR"]) == ([0, 1], 0)
    assert (run["versus"]["lstm"]["difference"], run["versus"]["lstm"]["p"]) == (0, 1)
    assert (tiny.kept / "tiny.json").stat().st_size < 40_000
    text = tables(run)
    mrr = f"{ours['metrics']['MRR']:.4f}"
    assert "| IntentRec (V3: V2 with the short-term window) | 0, 1 | " in text
    assert f" | {mrr} ± 0.0000 | not run | +8.28 % |  |" in text
    assert f" | {mrr} | not run | -25.20 % | 1.000 |" in text
    assert "| GRU | not run | not run | not run | not run | not run | -21.90 % | not run |" in text
    assert "| content_type alone | not run | not run | not run | +6.52 % | not run |" in text
    models = run["models"] | {"transact": ours | {"metrics": {"MRR": ours["metrics"]["MRR"] / 2}}}
    assert f" | {mrr} ± 0.0000 | +100.00 % | +7.40 % |  |" in tables(run | {"models": models})


def test_what_is_not_trained_is_a_row_with_one_seed(tiny: Tiny) -> None:
    run = tiny("--rows", "intentrec,popular", "--seeds", "2")
    assert run["baselines"] == ["popular"]
    popular, ours = run["models"]["popular"], run["models"]["intentrec"]
    assert (popular["seeds"], popular["deviation"]) == ([0], None)
    text = tables(run)
    values = " | ".join(f"{popular['metrics'][name]:.4f}" for name in ("HR@10", "NDCG@10", "MRR"))
    assert f"\n| popular | no training | {values} | not run |  | {p_of(run['versus']['popular']['p'])} |\n" in text
    for mrr, below in ((1.0, 2), (0.0, 0)):
        changed = run | {
            "models": run["models"] | {"popular": popular | {"metrics": popular["metrics"] | {"MRR": mrr}}}
        }
        told = f"{below} of the {len(run['models']) - 1} trained rows are below popular" in tables(changed)
        assert told == (below > 0)
    assert 0 < ours["metrics"]["MRR"] < 1


def test_a_section_is_replaced_alone_and_a_new_one_stands_before_the_words(tiny: Tiny, two_rows: Any) -> None:
    page = "# Results\n\nWords.\n\n## globo\n\n| old |\n\n## What this says\n\nMore words.\n"
    text, figures = made(page, tiny.kept.parent)
    section = text.removeprefix("# Results\n\nWords.\n\n## globo\n\n| old |\n\n").removesuffix(
        "## What this says\n\nMore words.\n"
    )
    assert section.startswith("## The paper's tables\n\n")
    assert "### tiny" in section
    assert section.endswith("Not run: ml-1m, ml-100k, globo, kuairand, retailrocket, demo.\n\n")
    assert list(figures) == ["paper/tiny.svg"]
    assert figures["paper/tiny.svg"].startswith("<svg ")
    assert made(text, tiny.kept.parent) == (text, figures)


def test_what_is_kept_of_another_storage_stays(tiny: Tiny, two_rows: Any, tmp_path: Path) -> None:
    other = Tiny(tmp_path)
    shutil.copytree(tiny.kept, other.kept)
    (other.kept / "tiny.json").write_text(json.dumps(two_rows))
    shutil.copytree(tiny.rows, other.rows)
    (other.rows / "lstm.seed-0.json").unlink()
    (other.rows / "popular.seed-0.json").unlink(missing_ok=True)
    run = other("--rows", "intentrec")
    assert (run["models"], run["versus"]) == (two_rows["models"], two_rows["versus"])
    (other.rows / "intentrec.seed-1.json").unlink()
    assert other("--rows", "intentrec")["models"]["intentrec"]["seeds"] == [0, 1]
    (other.kept / "tiny.json").write_text(json.dumps(two_rows | {"models": {"lstm": two_rows["models"]["lstm"]}}))
    run = other("--rows", "intentrec")
    assert run["models"].keys() == {"intentrec", "lstm"}
    assert run["versus"] == {}, "of another run of IntentRec"
    for key, value, told in (
        ("rows", run["rows"] | {"lstm": {"kind": "lstm"}}, "lstm there is of {'kind': 'lstm'}, and the row now is {"),
        ("data", run["data"] | {"events": 1}, "lstm there have data {'users': "),
    ):
        (other.kept / "tiny.json").write_text(json.dumps(run | {key: value}))
        with pytest.raises(SystemExit, match=re.escape(told)):
            other("--rows", "intentrec")


def test_a_row_that_was_run_otherwise_is_refused(tiny: Tiny) -> None:
    kept = (tiny.kept / "tiny.json").read_text()
    (tiny.kept / "tiny.json").unlink()
    with pytest.raises(SystemExit, match=r"lstm\.seed-0\.json: is of {"):
        tiny("--rows", "intentrec", "--set", "lstm.hidden=4")
    (tiny.kept / "tiny.json").write_text(kept)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_row_fits_every_config(name: str) -> None:
    path = ROOT / "configs" / name
    config, content = load_settings(Config, str(path)), yaml.safe_load(path.read_text())
    rows = sections(config, content, {"gru": {"hidden": 8}})
    intents = [feature.name for feature in config.data.intents]
    assert list(rows) == [*PAPER_ROWS, *(f"only-{intent}" for intent in intents)]
    assert rows["gru"]["hidden"] == 8
    changed = config.model_dump(mode="json", by_alias=True) | {"models": rows}
    assert list(Config.model_validate(changed).neural) == list(rows)
    with pytest.raises(InputError, match="--set: takes a row, lstm, "):
        sections(config, content, {"other": {}})


def test_every_number_of_the_paper_has_a_row() -> None:
    assert AGAINST_TRANSACT.keys() | AGAINST_V1.keys() <= PAPER_ROWS.keys() == NAMES.keys()


def test_the_page_is_what_is_kept() -> None:
    folder = PAGE.with_suffix("")
    text, figures = made(PAGE.read_text(), folder)
    assert text == PAGE.read_text(), "run `make results`"
    for name, figure in figures.items():
        assert (folder / name).read_text() == figure, "run `make results`"
