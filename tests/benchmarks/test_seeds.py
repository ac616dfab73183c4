"""Several seeds of a model: they are in the config, and are compared as their mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import yaml

from benchmarks.main_job import best_of, section, without_times
from benchmarks.results import made
from benchmarks.seeds import busiest, together, with_seeds
from cluster.config import Config
from embeddings.workers import Worker
from ingest.errors import InputError
from ingest.settings import load_settings
from tests.evaluation.scenarios import evaluated
from tests.small import Data


def test_a_model_is_trained_with_every_seed(tmp_path: Path) -> None:
    source = tmp_path / "run.yaml"
    model = {"kind": "intentrec", "train": {"epochs": 3}}
    content = {"name": "run", "data": {"events": "events"}, "train": {"seed": 5}}
    features = {"features": [{"name": "action", "intent": True}]}
    content |= {"data": {"events": "events"} | features, "models": {"a": model, "b": {"kind": "markov"}}}
    source.write_text(yaml.safe_dump(content))
    folder = tmp_path / "seeds"
    folder.mkdir()
    config = load_settings(Config, with_seeds(str(source), ["train.seed=7"], folder, 3, ["a"]))
    assert list(config.models) == ["a", "b", "a.seed-1", "a.seed-2"]
    trains = [config.train_config(name) for name in config.neural]
    assert [(train.seed, train.epochs) for train in trains] == [(7, 3), (8, 3), (9, 3)]
    own = ["models.a.train.seed=3", "models.a.dropout=0.05"]
    config = load_settings(Config, with_seeds(str(source), own, folder, 2, ["a"]))
    assert [config.train_config(name).seed for name in config.neural] == [3, 4]
    assert [config.models[name].model_dump()["dropout"] for name in config.neural] == [0.05, 0.05]
    with pytest.raises(InputError, match="--models: takes those of the config, a, b; got 'c'"):
        with_seeds(str(source), [], folder, 2, ["c"])


@pytest.mark.usefixtures("alone")
def test_seeds_are_compared_as_their_mean(data: Data, tmp_path: Path) -> None:
    found = evaluated(data, tmp_path, Worker())
    targets = tmp_path / "targets-1"
    shutil.copytree(targets / "markov", targets / "intentrec.seed-1")  # of another "seed"
    models: dict[str, Any] = {
        name: {"kind": model.kind, "metrics": dict(model.metrics), "intents": {}, "oracle": False}
        for name, model in found.models.items()
    }
    models["intentrec"]["intents"] = {"action": 0.5}
    models["intentrec.seed-1"] = models["markov"] | {"intents": {"action": 0.75}}
    results = {"models": models, "protocol": {"metric": "NDCG@10"}}
    results["segments"] = [segment.model_dump() for segment in found.segments]
    merged = together(results, str(targets), 1, 200)
    assert list(merged["models"]) == ["intentrec", "markov", "popularity"]
    ours = merged["models"]["intentrec"]
    pair = [models[name]["metrics"]["MRR"] for name in ("intentrec", "markov")]
    assert ours["metrics"]["MRR"] == pytest.approx(np.mean(pair))
    assert ours["spread"]["MRR"] == (min(pair), max(pair))
    assert ours["deviation"]["MRR"] == pytest.approx(np.std(pair, ddof=1))
    assert (ours["intents"], ours["intents_deviation"]) == ({"action": 0.625}, {"action": np.std([0.5, 0.75], ddof=1)})
    assert merged["models"]["popularity"]["spread"] is None
    assert merged["models"]["popularity"]["deviation"] is None

    def gains(name: str) -> np.ndarray:
        rank = pl.read_parquet(targets / name).sort("user", "place")["rank"].to_numpy()
        return np.where((rank > 0) & (rank <= 10), 1 / np.log2(1 + np.maximum(rank, 1)), 0)

    for other in ("markov", "popularity"):
        expected = (gains("intentrec") + gains("markov")).mean() / 2 - gains(other).mean()
        assert merged["versus"][other]["difference"] == pytest.approx(expected)
    quality = found.models["intentrec"].model_dump()["quality"]
    facts_of = pl.read_parquet(targets / "intentrec").sort("user", "place")
    kinds = {row.by for row in found.segments} - {f"intent {name}" for name in quality if name != "action"}
    assert {row["by"] for row in merged["segments"]} == kinds
    for row in merged["segments"]:
        if (row["by"], row["name"]) == ("item for the user", "new"):
            new = ~facts_of["again"].to_numpy()
            assert row["values"]["intentrec"] == pytest.approx((gains("intentrec") + gains("markov"))[new].mean() / 2)
            assert row["targets"] == new.sum()
    most = busiest(results, str(targets))
    item = pl.read_parquet(targets / "intentrec").sort("user", "place")["item"].to_numpy()
    ids, counts = np.unique(item.astype(str), return_counts=True)
    assert counts[ids == most["item"]] == counts.max() == pytest.approx(most["share"] * len(item))
    other = item.astype(str) != most["item"]
    assert most["without"]["popularity"] == pytest.approx(gains("popularity")[other].mean())
    assert most["without"]["intentrec"] == pytest.approx((gains("intentrec") + gains("markov"))[other].mean() / 2)
    run = {"seconds": {"all": 60, "train": 1, "evaluate": 1}, "peak_memory_gib": 1, "targets": 3, "unknown_targets": 0}
    run |= {"data": {"users": 1, "items": 2, "events": 3}, "chosen": {}, "date": "2026-11-29", "machine": "a machine"}
    run |= {"command": "python -m benchmarks.main_job configs/demo.yaml", "versions": {"torch": "2"}, "commit": "c0de+"}
    facts = {"quality": {}, "training": None, "latency": None, "parameters": None}
    merged["models"] = {name: model | facts for name, model in merged["models"].items()}
    merged["models"]["intentrec"] |= {
        "quality": quality,
        "training": {"epoch_seconds": 61.5, "targets_per_second": 4321.0, "memory_gib": 1.375},
        "latency": {"request": 0.0234, "users_per_second": 987.0},
        "parameters": 12345,
        "table_parameters": 678,
    }
    versus = {"markov": {"metric": "MRR", "difference": -0.0123, "p": 0.0177}}
    values = {"intentrec": 0.25, "markov": 0.2623}
    rows = [{"by": "intent action", "name": "wrong", "targets": 1727, "values": values, "versus": versus}]
    run |= merged | {"simple": found.model_dump()["simple"], "segments": rows}
    text = section(run)
    assert "| intent action | wrong | 1,727 | 0.2500 | 0.2623 | -0.0123 | 0.018 |" in text
    assert f" | {np.mean(pair):.4f} ± {np.std(pair, ddof=1):.4f} | |" in text
    assert "a seed: intentrec 2 of them." in text
    assert "commit c0de+, a machine" in text
    assert (
        f"| action | intentrec | {quality['action']['accuracy']:.3f} | {quality['action']['macro_f1']:.3f} | " in text
    )
    assert f"| action | last label | {found.simple['last label']['action'].accuracy:.3f} | " in text
    assert "against each baseline" not in text
    best = {"model": "intentrec", "versus": {"popularity": {"metric": "MRR", "difference": 0.02, "p": 0.0004}}}
    line = (
        "The best of the 1 trained models above, intentrec, against each baseline: popularity +0.0200 MRR (p < 0.001)."
    )
    assert line in section(run | {"best": best}).splitlines()
    assert best_of(merged["models"], "MRR") == "intentrec"
    assert "One item" not in section(run | {"busiest": most | {"share": 0.01}})
    line = f"One item, {most['item']}, is 12.5% of the targets. NDCG@10 without it: intentrec "
    assert line in section(run | {"busiest": most | {"share": 0.125}})
    times = "| intentrec | 12,345 | 678 | 61.5 | 4,321 | 1.38 | 23.4 | 987 |"
    assert times in text
    assert "minutes (training 1 s" in text
    busy = section(without_times(run))
    assert times not in busy
    assert "minutes" not in busy
    assert "so no times are kept." in busy
    kept, after = tmp_path / "results", "## globo\n\nkept\n\n## What this says\n\nwords\n"
    kept.mkdir()
    (kept / "demo.json").write_text(json.dumps(run))
    page, figures = made(f"# Results\n\n## demo\n\nold\n\n{after}", kept)
    assert page == f"# Results\n\n{text}\n\n![Differences with 95 % intervals](results/demo.svg)\n\n{after}"
    assert made(page, kept) == (page, figures)
    assert "intentrec against markov" in figures["demo.svg"]
    assert ElementTree.fromstring(figures["demo.svg"]).tag.endswith("svg")
