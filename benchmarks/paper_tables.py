"""The rows of the paper's tables (arXiv 2408.05353), its numbers, and what benchmarks.paper keeps of a log as Markdown.

The paper's numbers are relative: of the models to TransAct, of the ablations to V1, of one intent alone to V0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

FIRST = "intentrec"
"""The row that the others are compared with."""
ONLY = "only-"
PAPER_ROWS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", "features": False, "times": False},
    "gru": {"kind": "gru", "features": False, "times": False},
    "transformer": {"kind": "transformer", "features": False, "times": False},
    "sasrec": {"kind": "sasrec"},
    "bert4rec": {"kind": "bert4rec"},
    "transact": {"kind": "transact"},
    "hstu": {"kind": "hstu"},
    "v0": {"kind": "transformer", "intents": []},
    "v1": {"kind": "transformer"},
    "v2": {"kind": "intentrec", "window": None},
    "v2-deep": {"kind": "deep", "window": None},
    FIRST: {"kind": "intentrec"},
    "deep": {"kind": "deep"},
}
NAMES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "transformer": "Transformer",
    "sasrec": "SASRec",
    "bert4rec": "BERT4Rec",
    "transact": "TransAct",
    "hstu": "HSTU",
    "v0": "V0: metadata, the next item alone",
    "v1": "V1: multi-task, one encoder",
    "v2": "V2: hierarchy, two encoders",
    "v2-deep": "as deep as V2, no intents",
    FIRST: "IntentRec (V3: V2 with the short-term window)",
    "deep": "as deep as IntentRec, no intents",
}
MODELS = ["lstm", "gru", "transformer", "sasrec", "bert4rec", "transact", "hstu", "v0", FIRST, "deep"]
ABLATIONS = ["v0", "v1", "v2", "v2-deep", FIRST, "deep"]
AGAINST_TRANSACT = {
    "lstm": -25.2,
    "gru": -21.9,
    "transformer": -17.5,
    "sasrec": -20.3,
    "bert4rec": -25.0,
    "transact": 0.0,
    "v0": -0.82,
    FIRST: 7.40,
}
AGAINST_V1 = {"v0": -0.06, "v1": 0.0, "v2": 4.53, FIRST: 8.28}
"""Of a window of one week; of one month + 8.56."""
ALONE = {"action": 7.73, "time since release": 7.18, "movie/show": 6.52, "genre": 6.50}
ALL_INTENTS = 8.35
INTENTS = {
    "lstm": (-7.51, -2.48, -0.93, -0.58),
    "gru": (-7.40, -2.30, -0.92, -0.51),
    "transformer": (-5.33, -1.56, -0.77, -0.41),
    "transact": (0.0, 0.0, 0.0, 0.0),
    FIRST: (3.31, 2.78, 0.41, 0.84),
}
COLUMNS = ("action", "genre", "movie/show", "time since release")
OURS = {"action": "action", "genres": "genre", "content_type": "movie/show", "release_age": "time since release",
        "age": "time since release"}  # fmt: skip
"""Our names of the intents that the paper has."""
NOT_RUN = "not run"


def kinds_of_rows(intents: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Every row's keys of its own, for a log with these `intents`."""
    return PAPER_ROWS | {f"{ONLY}{intent}": {"kind": "intentrec", "intents": [intent]} for intent in intents}


def tables(run: Mapping[str, Any]) -> str:
    """What is kept of one log, as Markdown."""
    return "\n\n".join(
        [
            f"### {run['config']}",
            _introduction(run),
            _items(run, "model", [*run["baselines"], *MODELS], "transact", "TransAct", AGAINST_TRANSACT),
            _intents(run),
            _items(run, "ablation", ABLATIONS, "v1", "V1", AGAINST_V1),
            _alone(run),
            _times(run),
        ]
    )


def _introduction(run: Mapping[str, Any]) -> str:
    data, protocol, models = run["data"], run["protocol"], run["models"].values()
    commits = ", ".join(dict.fromkeys(commit for model in models for commit in model["commits"]))
    command = f"{run['command']} --seeds {max(len(model['seeds']) for model in models)}"
    several = " ± the standard deviation of a seed" if any(model["deviation"] for model in models) else ""
    counts = _below_the_best_baseline(run)
    counts += f"{data['events']:,} events of {data['users']:,} users and {data['items']:,} items"
    split, seen = protocol["split"].replace("_", " "), "out" if protocol["filter_seen"] else "in"
    return (
        f"{counts}; {protocol['targets']:,} targets (split: {split}), seen items {seen}; at most {run['epochs']} "
        f"epochs, of which the best on validation is taken. Means over the seeds{several}; p against IntentRec in "
        f"{protocol['metric']}, paired over users.\n\n`{command}`, {run['date'][:10]}, commit {commits}, "
        f"{run['machine']}, torch {run['versions']['torch']}."
    )


def _below_the_best_baseline(run: Mapping[str, Any]) -> str:
    """A sentence, where a trained row is."""
    metric = run["protocol"]["metric"]
    values = {row: model["metrics"][metric] for row, model in run["models"].items()}
    simple = {row: value for row, value in values.items() if row in run["baselines"]}
    if not simple:
        return ""
    best = max(simple, key=lambda row: simple[row])
    trained = values.keys() - simple.keys()
    below = sum(values[row] < simple[best] for row in trained)
    return (
        f"{below} of the {len(trained)} trained rows are below {best}, the best that is not trained. " if below else ""
    )


def _items(
    run: Mapping[str, Any], title: str, rows: list[str], base: str, base_name: str, paper: Mapping[str, float]
) -> str:
    """Next-item accuracy of `rows`, relative to the row `base`, beside what the paper has."""
    metric, models = run["protocol"]["metric"], run["models"]
    names = ["HR@10", "NDCG@10", "MRR"]
    found = [_row([title, "seeds", *names, f"{metric} against {base_name}", "the paper", "p"]), _row(["---"] * 8)]
    for row in rows:
        model = models.get(row)
        cells = [_mean(model, "metrics", name) for name in names]
        relative = _relative(models, row, base, lambda model: model["metrics"][metric])
        seeds = "no training" if row in run["baselines"] else _seeds(model)
        name = NAMES.get(row, row)
        found.append(_row([name, seeds, *cells, relative, _percent(paper.get(row)), _p(run, row)]))
    return "\n".join(found)


def _alone(run: Mapping[str, Any]) -> str:
    """IntentRec with one intent, relative to V0."""
    metric, models = run["protocol"]["metric"], run["models"]
    found = [
        _row(["intents of IntentRec", "seeds", metric, f"{metric} against V0", "the paper", "p"]),
        _row(["---"] * 6),
    ]
    paper = {f"{ONLY}{intent}": ALONE.get(OURS.get(intent, "")) for intent in run["intents"]} | {FIRST: ALL_INTENTS}
    for row, theirs in paper.items():
        model = models.get(row)
        relative = _relative(models, row, "v0", lambda model: model["metrics"][metric])
        name = "all" if row == FIRST else f"{row.removeprefix(ONLY)} alone"
        found.append(
            _row([name, _seeds(model), _mean(model, "metrics", metric), relative, _percent(theirs), _p(run, row)])
        )
    return "\n".join(found)


def _intents(run: Mapping[str, Any]) -> str:
    """Accuracy of the intents, relative to TransAct's, beside what the paper has."""
    models, intents = run["models"], run["intents"]
    head = [cell for intent in intents for cell in (intent, "against TransAct", "the paper")]
    found = [_row(["accuracy of intents", *head]), _row(["---"] * (1 + len(head)))]
    found.append(_row(["majority label", *(f"{run['majority'].get(intent, 0):.3f} | | " for intent in intents)]))
    for row in [*(row for row in MODELS if row not in ("sasrec", "bert4rec", "v0", "deep")), "v1", "v2"]:
        cells = []
        for intent in intents:
            theirs = dict(zip(COLUMNS, INTENTS.get(row, ()), strict=False)).get(OURS.get(intent, ""))
            relative = _relative(models, row, "transact", lambda model, of=intent: model["intents"].get(of))
            cells += [_mean(models.get(row), "intents", intent, 3), relative, _percent(theirs)]
        found.append(_row([NAMES[row], *cells]))
    return "\n".join(found)


def _times(run: Mapping[str, Any]) -> str:
    """What every row took: of its first seed."""
    head = ["seconds an epoch", "targets/s", "GiB", "a user, ms", "users/s", "parameters", "in tables"]
    found = [_row(["what it takes", *head]), _row(["---"] * (1 + len(head)))]
    for row in dict.fromkeys([*MODELS, *ABLATIONS]):
        model = run["models"].get(row)
        cells = [NOT_RUN] * len(head)
        if model is not None:
            training, latency = model["training"] or {}, model["latency"] or {}
            values = [
                *(training.get(name) for name in ("epoch_seconds", "targets_per_second", "memory_gib")),
                1000 * latency["request"] if latency else None,
                latency.get("users_per_second"),
            ]
            formats = ("{:.1f}", "{:,.0f}", "{:.2f}", "{:.1f}", "{:,.0f}")
            cells = ["" if value is None else text.format(value) for text, value in zip(formats, values, strict=True)]
            cells += [f"{model['parameters']:,}", f"{model['table_parameters']:,}"]
        found.append(_row([NAMES[row], *cells]))
    if any(model["training"] is None for row, model in run["models"].items() if row not in run["baselines"]):
        found += ["", "No times: of rows that were trained while the machine had other work."]
    return "\n".join(found)


def p_of(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seeds(model: Mapping[str, Any] | None) -> str:
    return NOT_RUN if model is None else ", ".join(map(str, model["seeds"]))


def _mean(model: Mapping[str, Any] | None, of: str, name: str, digits: int = 4) -> str:
    """A mean with the deviation of a seed."""
    if model is None:
        return NOT_RUN
    if name not in model[of]:
        return ""
    deviations = model["deviation" if of == "metrics" else "intents_deviation"]
    spread = f" ± {deviations[name]:.{digits}f}" if deviations else ""
    return f"{model[of][name]:.{digits}f}{spread}"


def _relative(models: Mapping[str, Any], row: str, base: str, value: Callable[[Any], float | None]) -> str:
    if row not in models or base not in models:
        return NOT_RUN
    ours, theirs = value(models[row]), value(models[base])
    return _percent(100 * (ours / theirs - 1)) if ours is not None and theirs else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f} %"


def _p(run: Mapping[str, Any], row: str) -> str:
    if row == FIRST:
        return ""
    found = run["versus"].get(row)
    return NOT_RUN if found is None else p_of(found["p"])
