"""The report: whole, readable without a network, and safe with hostile text."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evaluation.metrics import METRICS, RankMetrics
from evaluation.report import duration, format_table, write_report
from evaluation.results import Results
from tests.evaluation.test_significance import compare

HOSTILE = "<script>alert('x')</script> & \"Søn's\" </style>"
VOID = {"meta", "link", "br", "img", "input", "hr"}
INTENTS = ("action", "genre", "release")


class Page(HTMLParser):
    """Walks a page: every tag is closed in order; keeps the text, the tags and all attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def model(kind: str, label: str, ranks: np.ndarray[Any, Any], seed: int, neural: bool = True) -> dict[str, Any]:
    metrics = RankMetrics.of(int(ranks.max()))
    metrics.update(ranks)
    random = np.random.default_rng(seed)
    steps = np.arange(1, 3000, 7)
    loss = 4.1 + seed * 0.12 + 3.8 * np.exp(-steps / 600) + random.normal(0, 0.12, len(steps))
    validation = [(e, 0.16 - 0.004 * seed - 0.1 * float(np.exp(-e / 3))) for e in range(1, 13)]
    result: dict[str, Any] = {"kind": kind, "label": label, "metrics": metrics.compute()}
    if neural:
        result |= {
            "parameters": 1_234_567 + seed,
            "table_parameters": 765_432,
            "training": {"epochs": 12, "epoch_seconds": 61.5, "targets_per_second": 43210.7, "memory_gib": 1.375},
            "latency": {"request": 0.0234, "users_per_second": 9876.5},
            "best_epoch": 9,
            "seconds": 754.0 + seed,
            "curve": {
                "train": [[int(s), float(v)] for s, v in zip(steps, loss, strict=True)],
                "validation": [list(pair) for pair in validation],
            },
        }
    return result


def sample() -> dict[str, Any]:
    """Results such as an evaluation fills them, from made ranks."""
    random = np.random.default_rng(0)
    base = np.ceil(np.exp(random.normal(3.2, 1.7, 6040))).astype(np.int64)
    shift = {"intentrec": 0.80, "deep": 0.9, "sasrec": 0.92, "markov": 1.9, "popularity": 6.0}
    ranks = {
        key: np.maximum(1, (base * factor * np.exp(random.normal(0, 0.35, len(base)))).astype(np.int64))
        for key, factor in shift.items()
    }
    labels = {"intentrec": "IntentRec", "deep": "Deep, same size, no intents", "sasrec": "SASRec"}
    models = {
        key: model(key, labels.get(key, key.title()), ranks[key], seed, neural=key in labels)
        for seed, key in enumerate(shift)
    }
    models["intentrec"] |= {
        "inputs": "items, features",
        "intents": {"action": 0.714, "genre": 0.6421, "release": 0.8013},
        "quality": {
            "action": {
                "accuracy": 0.714,
                "macro_f1": 0.3125,
                "log_loss": 0.875,
                "calibration_error": 0.0331,
                "targets": 5987,
            }
        },
        "attention": {"action": 0.21, "genre": 0.55, "release": 0.24},
        "versus": {
            other: compare(ranks["intentrec"], ranks[other], "NDCG@10", seed=1, resamples=1000).model_dump()
            for other in shift
            if other != "intentrec"
        },
    }
    titles = ["Toy Story (1995)", "Heat (1995)", "Fargo (1996)", "Casino (1995)", "The Usual Suspects (1995)"]
    history = [
        {
            "item": 100 + n,
            "title": titles[n % 5],
            "time": f"2001-03-{n + 1:02} 20:14",
            "features": {"genre": "Crime, Drama" if n % 3 else "Comedy", "action": "watch"},
        }
        for n in range(22)
    ]
    return {
        "name": "demo",
        "created": "2026-11-24 12:00 UTC",
        "command": "intentrec run configs/demo.yaml",
        "machine": "2 CPU cores, 8 GiB, no GPU",
        "versions": {"intentrec": "0.1.0", "torch": "2.13.0", "torchrec": "1.8.0", "ray": "2.60.0"},
        "protocol": {
            "split": "leave_one_out",
            "filter_seen": True,
            "catalogue_size": 3706,
            "targets": 6040,
            "unknown_targets": 12,
            "filtered_targets": 3,
            "validation_metric": "NDCG@10",
            "metric": "MRR",
        },
        "models": models,
        "majority": {"action": 0.52, "genre": 0.31, "release": 0.7925},
        "simple": {"last label": {"action": {"accuracy": 0.61, "macro_f1": 0.2813, "targets": 5987}}},
        "segments": [
            {
                "by": "intent action",
                "name": "wrong",
                "targets": 1727,
                "values": dict.fromkeys(models, 0.0625),
                "versus": {"deep": {"metric": "MRR", "difference": -0.0123, "low": -0.02, "high": -0.004, "p": 0.0177}},
            }
        ],
        "example": {
            "user": 4711,
            "history": history,
            "intents": {
                "action": [["watch", 0.81], ["browse", 0.15], ["rate", 0.04]],
                "genre": [["Crime", 0.46], ["Drama", 0.31], ["Comedy", 0.12]],
                "release": [["recent", 0.7], ["new", 0.2], ["evergreen", 0.1]],
            },
            "attention": {"action": 0.14, "genre": 0.63, "release": 0.23},
            "top_items": [
                {"item": 900 + n, "title": f"Film {n}", "score": 9.5 - n / 3, "is_next": n == 3, "seen": n == 6}
                for n in range(10)
            ],
            "next_item": "Film 3",
        },
        "data": {
            "users": 6040,
            "items": 3706,
            "interactions": 1000209,
            "mean_length": 165.6,
            "dropped": {"too_short": 31, "unknown_item": 7},
            "warnings": ["12 items have no genre."],
        },
        "config": "name: demo\nmodels:\n  intentrec: {kind: intentrec}\n",
        "seconds": {"prepare": 12.3, "train": 2410.0, "evaluate": 95.5},
    }


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return sample()


def page_of(results: dict[str, Any], folder: Path) -> tuple[Page, str]:
    path = write_report(Results.model_validate(results), str(folder))
    source = Path(path).read_text()
    return Page(source), source


def test_the_page_and_the_numbers_are_written(results: dict[str, Any], tmp_path: Path) -> None:
    path = write_report(Results.model_validate(results), str(tmp_path))
    assert Path(path) == tmp_path / "report" / "index.html"
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["models"]["intentrec"]["metrics"] == results["models"]["intentrec"]["metrics"]
    assert write_report(Results.model_validate(written), str(tmp_path / "again"))
    assert (tmp_path / "again/report/index.html").read_text() == Path(path).read_text()


def test_the_page_holds_all_numbers(results: dict[str, Any], tmp_path: Path) -> None:
    page, _ = page_of(results, tmp_path)
    for key, content in results["models"].items():
        assert content["label"] in page.text
        for metric in METRICS:
            assert f"{content['metrics'][metric]:.4f}" in page.text, (key, metric)
        for row in content.get("versus", {}).values():
            assert all(f"{row[name]:+.4f}" in page.text for name in ("difference", "low", "high"))
        for accuracy in content.get("intents", {}).values():
            assert f"{100 * accuracy:.1f} %" in page.text
    for share in results["majority"].values():
        assert f"{100 * share:.1f} %" in page.text
    for text in (
        *("1,000,209", "165.6", "dropped: too short", "12 items have no genre.", "40 min 10 s", "1,234,567"),
        *("split: leave one out", "taken out of the ranking", "12 targets are items", "3 targets had been seen"),
        *("Ties count against the model", "whole catalogue of 3,706 items", "intentrec run configs/demo.yaml"),
        *("765,432", "1 min 02 s", "43,211", "1.38", "23.4", "9,876"),
        *("Where it helps", "1,727", "0.0625", "-0.0123", "-0.0200 to -0.0040", "0.018"),
        *("last label", "0.3125", "0.2813", "0.8750", "3.3 %", "5,987"),
        *("2 CPU cores", "2.13.0", "2026-11-24", "name: demo", "seen before", "what came next", "Film 9"),
    ):
        assert text in page.text, text


def test_the_page_says_who_knows_the_request(results: dict[str, Any], tmp_path: Path) -> None:
    page, _ = page_of(results, tmp_path / "nobody")
    assert "of the request" not in page.text
    models = results["models"]
    models["intentrec"] |= {"knows": ["request", "history", "recent"], "live": True}
    models["sasrec"] |= {"knows": ["request"]}
    page, _ = page_of(results, tmp_path / "some")
    for sentence in (
        "Of the trained models, IntentRec, SASRec know the time of the request and its features at_request.",
        "Of the trained models, IntentRec knows what was taken up to the request (live).",
    ):
        assert sentence in page.text


def test_the_page_needs_no_network_and_no_script(results: dict[str, Any], tmp_path: Path) -> None:
    page, source = page_of(results, tmp_path)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.seen)
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import", source)


def test_the_best_value_of_a_column_is_bold(results: dict[str, Any], tmp_path: Path) -> None:
    _, source = page_of(results, tmp_path)
    best = max(model["metrics"]["HR@20"] for model in results["models"].values())
    assert f'<td class="best">{best:.4f}</td>' in source
    worst = min(model["metrics"]["HR@20"] for model in results["models"].values())
    assert f'<td class="best">{worst:.4f}</td>' not in source


def test_the_curves_are_drawn_for_each_model_that_has_them(results: dict[str, Any], tmp_path: Path) -> None:
    page, source = page_of(results, tmp_path)
    assert source.count("<polyline") == 6
    assert page.seen.count("svg") == 3
    assert not re.search(r"nan|inf\b", " ".join(value for name, value in page.attributes if name in ("points", "cx")))


def test_hostile_text_stays_text(results: dict[str, Any], tmp_path: Path) -> None:
    hostile: dict[str, Any] = copy.deepcopy(results)
    hostile |= {"name": HOSTILE, "config": HOSTILE, "command": HOSTILE}
    hostile["models"]["intentrec"]["label"] = hostile["models"]["sasrec"]["label"] = HOSTILE
    hostile["data"] = {HOSTILE: HOSTILE, "warnings": [HOSTILE]}
    example = hostile["example"]
    example["next_item"] = example["history"][-1]["title"] = example["top_items"][0]["title"] = HOSTILE
    example["history"][-1]["features"] = {HOSTILE: HOSTILE}
    example["intents"] = {HOSTILE: [[HOSTILE, 0.5]]}
    page, source = page_of(hostile, tmp_path)
    assert "script" not in page.seen
    assert "<script" not in source
    assert source.count("</style>") == 1
    assert page.text.count(HOSTILE) >= 12


@pytest.mark.parametrize("missing", ["example", "majority", "data", "config", "seconds", "versions", "command"])
def test_a_missing_part_leaves_the_page_whole(results: dict[str, Any], tmp_path: Path, missing: str) -> None:
    page, _ = page_of({key: value for key, value in results.items() if key != missing}, tmp_path)
    assert "NDCG@10" in page.text
    assert ("One user" in page.text) == (missing != "example")


def test_the_least_that_is_allowed_makes_a_page(results: dict[str, Any], tmp_path: Path) -> None:
    least = {key: results[key] for key in ("name", "created", "protocol")}
    least["models"] = {"popularity": {"kind": "popularity", "label": "Popularity", "metrics": {"HR@10": 0.0}}}
    page, _ = page_of(least, tmp_path)
    assert "0.0000" in page.text
    assert "Intents" not in page.text
    assert "svg" not in page.seen
    assert "0.0000*" in format_table(Results.model_validate(least))


def test_what_is_not_in_the_contract_is_refused_by_name(results: dict[str, Any]) -> None:
    broken = copy.deepcopy(results)
    broken["models"]["sasrec"]["metrics"]["MRR"] = float("nan")
    with pytest.raises(ValidationError, match="MRR"):
        Results.model_validate(broken)
    with pytest.raises(ValidationError, match="modles"):
        Results.model_validate(results | {"modles": {}})


def first_sentences(results: dict[str, Any], folder: Path) -> list[str]:
    """The first sentence of the page, and that of the summary."""
    _, source = page_of(results, folder)
    headline = re.search(r'<p class="headline">(.*?)</p>', source, re.DOTALL)
    texts = [headline[1] if headline else "", format_table(Results.model_validate(results)).splitlines()[0]]
    return [re.split(r"(?<=\.) ", text)[0] for text in texts]


def test_the_first_sentence_says_by_how_much_the_best_trained_model_leads(
    results: dict[str, Any], tmp_path: Path
) -> None:
    metric = results["protocol"]["metric"]
    ours, base = (results["models"][key]["metrics"][metric] for key in ("intentrec", "markov"))
    assert ours > base > results["models"]["popularity"]["metrics"][metric]
    for sentence in first_sentences(results, tmp_path):
        assert sentence == (
            f"In MRR, the best trained model, IntentRec, leads Markov, the best baseline, by {ours - base:.4f} "
            f"({100 * (ours - base) / base:.1f} %): {ours:.4f} against {base:.4f}."
        )


def test_the_first_sentence_admits_a_baseline_that_is_better(results: dict[str, Any], tmp_path: Path) -> None:
    """Of the metric that models are compared by, and of the best trained one, which is not the first here."""
    worse = copy.deepcopy(results)
    for key, value in {"intentrec": 0.2, "deep": 0.25, "sasrec": 0.31, "markov": 0.3, "popularity": 0.3125}.items():
        worse["models"][key]["metrics"]["MRR"] = value
    for sentence in first_sentences(worse, tmp_path):
        assert sentence == (
            "In MRR, the best trained model, SASRec, is below Popularity, the best baseline: 0.3100 against 0.3125."
        )
    worse["models"]["popularity"]["metrics"]["MRR"] = 0.31
    assert "SASRec, is level with Popularity" in first_sentences(worse, tmp_path)[0]


def test_without_baselines_nothing_is_said_of_them(results: dict[str, Any], tmp_path: Path) -> None:
    alone = results | {"models": {key: results["models"][key] for key in ("deep", "sasrec")}, "segments": []}
    assert not any("baseline" in sentence for sentence in first_sentences(alone, tmp_path))


def test_what_knows_the_rule_is_no_competitor_but_a_bound(results: dict[str, Any], tmp_path: Path) -> None:
    """It is told what share of it the best model reaches; stars, sentences and comparisons are of the others."""
    bounded = copy.deepcopy(results)
    without = [first_sentences(results, tmp_path), format_table(Results.model_validate(results))]
    for key, value in (("filter", 0.5), ("ceiling", 0.8)):
        bounded["models"][key] = {"kind": "rule", "label": key, "metrics": {"MRR": value, "HR@10": 0.99}}
        bounded["models"][key] |= {"inputs": f"all of {HOSTILE}", "oracle": True}
    assert first_sentences(bounded, tmp_path) == without[0]
    best = max(model["metrics"]["MRR"] for model in results["models"].values())
    assert results["models"]["intentrec"]["metrics"]["MRR"] == best
    said = f"In MRR, the best model, IntentRec, reaches {200 * best:.1f} % of filter (0.5000), {125 * best:.1f} % of"
    page, source = page_of(bounded, tmp_path)
    table = format_table(Results.model_validate(bounded))
    for text in (page.text, table):
        assert f"{said} ceiling (0.8000)." in text
        assert f"no competitors: filter knows all of {HOSTILE}; ceiling knows all of" in text
    assert "<script" not in source
    assert source.count("knows the rule") == 4  # of two bounds in two tables
    assert re.search(r"^filter \(knows the rule\) .* 0\.9900 .* 0\.5000$", table, re.MULTILINE)
    assert [line.count("*") for line in table.splitlines() if line.startswith("IntentRec ")] == [
        line.count("*") for line in without[1].splitlines() if line.startswith("IntentRec ")
    ]
    alone = bounded | {"models": {key: bounded["models"][key] for key in ("filter", "ceiling")}, "segments": []}
    assert "reaches" not in page_of(alone, tmp_path)[0].text


def test_settings_that_were_chosen_are_told_with_all_that_were_tried(results: dict[str, Any], tmp_path: Path) -> None:
    told = copy.deepcopy(results)
    tried = [{"settings": {"order": "recency"}, "value": 0.25}, {"settings": {"order": HOSTILE}, "value": 0.375}]
    told["models"]["markov"]["chosen"] = {"settings": tried[1]["settings"], "metric": "HR@5", "tried": tried}
    page, source = page_of(told, tmp_path)
    assert f"order={HOSTILE}: 0.3750 HR@5 (order=recency: 0.2500)" in page.text
    assert "<script" not in source
    assert f"Markov with order={HOSTILE}: 0.3750 of validation HR@5" in format_table(Results.model_validate(told))


def test_the_table_marks_the_best_and_tells_the_protocol(results: dict[str, Any]) -> None:
    table = format_table(Results.model_validate(results))
    best = max(model["metrics"]["NDCG@10"] for model in results["models"].values())
    assert f"{best:.4f}*" in table
    assert "IntentRec against SASRec: NDCG@10 +" in table
    assert "nothing sampled" in table
    assert re.search(r"genre +0\.3100 +- +0\.6421\*", table)


def test_the_users_last_label_may_be_the_best(results: dict[str, Any]) -> None:
    results["simple"]["last label"]["action"]["accuracy"] = 0.99
    table = format_table(Results.model_validate(results))
    (line,) = [line for line in table.splitlines() if line.startswith("action ")]
    assert re.fullmatch(r"action +0\.5200 +0\.9900\*( +0\.\d{4})+", line.rstrip())


def test_a_line_of_the_table_fits(results: dict[str, Any]) -> None:
    table = format_table(Results.model_validate(results))
    assert all(len(line) < 140 for line in table.splitlines())


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.84, 59.96, 200, 7500)] == ["0.8 s", "60.0 s", "3 min 20 s", "2 h 05 min"]
