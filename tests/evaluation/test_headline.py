"""The sentence that a report begins with speaks of one metric, that of the comparisons."""

from __future__ import annotations

from pathlib import Path

from evaluation.report import leading_model, write_report
from evaluation.results import Results
from tests.evaluation.test_report import sample


def results_of(values: dict[str, tuple[float, float]]) -> Results:
    """Those of `sample`, with NDCG@10 and MRR by model; low ones of all others."""
    content = sample()
    for name, found in content["models"].items():
        ndcg, mrr = values.get(name, (0.01, 0.01))
        found["metrics"] |= {"NDCG@10": ndcg, "MRR": mrr}
    versus = content["models"]["intentrec"]["versus"]
    below = {"metric": "MRR", "difference": -0.05, "low": -0.06, "high": -0.04, "p": 0.001}
    content["models"]["intentrec"]["versus"] = versus | {"markov": below}
    return Results.model_validate(content)


def test_the_best_other_model_is_the_best_by_the_metric_that_is_spoken_of(tmp_path: Path) -> None:
    results = results_of({"intentrec": (0.3, 0.2), "sasrec": (0.29, 0.15), "markov": (0.28, 0.25)})
    page = Path(write_report(results, str(tmp_path))).read_text()
    assert "IntentRec is 20.0 % worse than the best other model, Markov" in page
    for model in results.models.values():
        model.intents.clear()
    assert leading_model(results) == "markov"
