"""The report of a run: results.json for programs, report/index.html for people, a table for the terminal.

The page is one file that needs no network: styles are inline, charts are SVG from charts.py, and all text that
comes from data is escaped. It is written from `Results` alone, so it can be made again at any time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evaluation.charts import SERIES_COLOURS, interval_chart, line_chart, number, signed
from evaluation.metrics import METRICS
from evaluation.results import Comparison, IntentQuality, ModelResults, Results
from ingest.storage import join, write_text

_HISTORY = 15
_TOP_ITEMS = 10


def write_report(results: Results, destination: str) -> str:
    """Write `destination`/results.json and `destination`/report/index.html, local or s3://; returns the page's path."""
    write_text(join(destination, "results.json"), results.model_dump_json(indent=2) + "\n")
    page = join(destination, "report", "index.html")
    write_text(page, render_report(results))
    return page


def render_report(results: Results) -> str:
    """The page's HTML."""
    names = present_metrics(results)
    first, comparisons = leading_model(results), _comparisons(results)
    return (
        _environment()
        .get_template("report.html")
        .render(
            r=results,
            main_metrics=main_metrics(results),
            all_metrics=names,
            best={name: best_value(results, name) for name in names},
            protocol=protocol_sentences(results),
            headline=" ".join(
                filter(None, [against_baselines(results), _headline(results, first), against_rule(results)])
            ),
            leading=results.models[first],
            colours={key: index % SERIES_COLOURS for index, key in enumerate(results.models)},
            comparisons=comparisons,
            choices=list(_choices(results)),
            interval_chart=interval_chart(
                [(f"against {results.models[other].label}", row) for _, other, row, _ in comparisons]
            ),
            intents=_intents(results),
            first=next(iter(results.models)),
            segments=results.segments,
            control=next((control for row in results.segments for control in row.versus), None),
            qualities=list(_qualities(results)),
            loss_chart=_chart(results, "train", "step", "training loss"),
            validation_chart=_chart(results, "validation", "epoch", results.protocol.validation_metric),
            history=results.example.history[-_HISTORY:] if results.example else [],
            top_items=results.example.top_items[:_TOP_ITEMS] if results.example else [],
            facts=list(_facts(results.data)),
        )
    )


def format_table(results: Results) -> str:
    """The accuracy of all models as plain text, the best value of each column marked *; for the end of a run."""
    columns = main_metrics(results)
    rows = [["model", *columns]]
    for model in results.models.values():
        label = f"{model.label} (knows the rule)" if model.oracle else model.label
        rows.append([label, *(_starred(model.metrics.get(name), best_value(results, name)) for name in columns)])
    blocks = ["\n".join(filter(None, [against_baselines(results), against_rule(results)]))]
    blocks += ["\n".join(protocol_sentences(results)), _aligned(rows)]
    blocks.append(
        "\n".join(f"{label} with {best} of validation {metric}" for label, metric, best, _ in _choices(results))
    )
    blocks.append("\n".join(_comparison_sentence(results, *row) for row in _comparisons(results)))
    intents = _intents(results)
    if intents:
        speakers = [model for model in results.models.values() if model.intents]
        rows = [["intent accuracy", "majority", "last", *(model.label for model in speakers)]]
        for intent, majority, last, best in intents:
            values = majority, last, *(model.intents.get(intent) for model in speakers)
            rows.append([intent, *(_starred(value, best) for value in values)])
        blocks.append(_aligned(rows))
    return "\n\n".join(block for block in blocks if block)


def present_metrics(results: Results) -> list[str]:
    """The metrics that any model has, in the order of `METRICS`, then those that are not registered here."""
    found = dict.fromkeys(name for model in results.models.values() for name in model.metrics)
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def main_metrics(results: Results) -> list[str]:
    """The columns of the first table; all metrics stand in a second one."""
    present = present_metrics(results)
    return [name for name in present if name not in METRICS or METRICS[name].main] or present


def best_value(results: Results, metric: str) -> float:
    """The highest value of `metric` over the models that have it; bounds count where nothing else does."""
    found = [model for model in results.models.values() if metric in model.metrics]
    return max(model.metrics[metric] for model in [model for model in found if not model.oracle] or found)


def competitors(results: Results) -> dict[str, ModelResults]:
    """The models but those that know the rule of a made log."""
    return {key: model for key, model in results.models.items() if not model.oracle}


def leading_model(results: Results) -> str:
    """The model that the page speaks of: the first that predicts intents, or else the best one."""
    speakers = [key for key, model in results.models.items() if model.intents]
    if speakers:
        return speakers[0]
    return max(competitors(results) or results.models, key=lambda key: _headline_value(results, key))


def against_baselines(results: Results) -> str:
    """The first sentence of all: whether what was trained is better than what was only counted."""
    metric = results.protocol.metric
    models = [model for model in competitors(results).values() if metric in model.metrics]
    trained, counted = ([model for model in models if model.trained == kind] for kind in (True, False))
    if not trained or not counted:
        return ""
    ours, theirs = (max(group, key=lambda model: model.metrics[metric]) for group in (trained, counted))
    value, base = ours.metrics[metric], theirs.metrics[metric]
    labels = f"the best trained model, {ours.label}", f"{theirs.label}, the best baseline"
    values = f"{value:.4f} against {base:.4f}"
    if value < base:
        return f"In {metric}, {labels[0]}, is below {labels[1]}: {values}."
    if value == base:
        return f"In {metric}, {labels[0]}, is level with {labels[1]}: {values}."
    share = f" ({_percent((value - base) / base)})" if base > 0 else ""
    return f"In {metric}, {labels[0]}, leads {labels[1]}, by {value - base:.4f}{share}: {values}."


def against_rule(results: Results) -> str:
    """How near the best model comes to what can be known of a made log, where there are models that know its rule."""
    metric = results.protocol.metric
    found = [model for model in competitors(results).values() if metric in model.metrics]
    bounds = [model for model in results.models.values() if model.oracle and model.metrics.get(metric)]
    if not found or not bounds:
        return ""
    best = max(found, key=lambda model: model.metrics[metric])
    shares = [
        f"{_percent(best.metrics[metric] / bound.metrics[metric])} of {bound.label} ({bound.metrics[metric]:.4f})"
        for bound in bounds
    ]
    return f"In {metric}, the best model, {best.label}, reaches {', '.join(shares)}."


def _choices(results: Results) -> Iterable[tuple[str, str, str, list[str]]]:
    """The models whose settings were chosen: label, validation metric, what was chosen and what else was tried."""
    for model in results.models.values():
        if model.chosen is not None:
            best, *others = model.chosen.texts
            yield model.label, model.chosen.metric, best, others


def _known(results: Results) -> Iterable[str]:
    """Who knows more of a request than the history before it."""
    models = results.models.values()
    for names, known in (
        ([m.label for m in models if "request" in m.knows], "the time of the request and its features at_request"),
        ([m.label for m in models if m.live], "what was taken up to the request (live)"),
    ):
        if names:
            yield f"Of the trained models, {', '.join(names)} {'know' if len(names) > 1 else 'knows'} {known}."


def protocol_sentences(results: Results) -> list[str]:
    """How the numbers were made, in plain words."""
    p = results.protocol
    sentences = [
        f"{p.targets:,} targets (split: {p.split.replace('_', ' ')}), each ranked among the whole catalogue of "
        f"{p.catalogue_size:,} items, nothing sampled.",
        "Items that the user has seen before are taken out of the ranking."
        if p.filter_seen
        else "Items that the user has seen before stay in the ranking.",
        "Ties count against the model.",
        *_known(results),
    ]
    bounds = [f"{model.label} knows {model.inputs}" for model in results.models.values() if model.oracle]
    if bounds:
        sentences.append(f"Bounds of what can be known, and no competitors: {'; '.join(bounds)}.")
    if p.unknown_targets:
        sentences.append(
            f"{p.unknown_targets:,} targets are items that training does not know; a model that scores items by "
            "what it has learned of each misses them."
        )
    if p.filtered_targets:
        sentences.append(
            f"{p.filtered_targets:,} targets had been seen before and were taken out; they count as misses."
        )
    return sentences


def duration(seconds: float) -> str:
    """0.8 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def p_value(p: float) -> str:
    """p = 0.034, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, duration=duration, p_value=p_value, percent=_percent)
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _headline_value(results: Results, model: str) -> float:
    """In the metric that models are compared by."""
    metrics = results.models[model].metrics
    return metrics.get(results.protocol.metric, max(metrics.values(), default=0.0))


def _headline(results: Results, first: str) -> str:
    """What came out, in one sentence: the leading model against the best of the others."""
    best = max(
        (key for key in competitors(results) if key != first),
        key=lambda key: _headline_value(results, key),
        default="",
    )
    for key, other, row, relative in _comparisons(results):
        if (key, other) == (first, best):
            size = "" if relative is None else f"{_percent(abs(relative))} "
            relation = "not clearly apart from" if row.verdict == "even" else f"{size}{row.verdict} than"
            labels = results.models[first].label, results.models[best].label
            return f"In {row.metric}, {labels[0]} is {relation} the best other model, {labels[1]} ({p_value(row.p)})."
    return ""


def _comparisons(results: Results) -> list[tuple[str, str, Comparison, float | None]]:
    """Each comparison: the two models' keys, its numbers, and the difference relative to the other model's value.

    The last is None where that value is 0 or unknown.
    """
    found = []
    for key, model in results.models.items():
        for other, row in model.versus.items():
            base = results.models[other].metrics.get(row.metric)
            found.append((key, other, row, row.difference / base if base else None))
    return found


def _comparison_sentence(results: Results, key: str, other: str, row: Comparison, relative: float | None) -> str:
    share = "" if relative is None else f" ({100 * relative:+.1f} %)"
    return (
        f"{results.models[key].label} against {results.models[other].label}: {row.metric} {signed(row.difference)}"
        f"{share}, 95 % interval {signed(row.low)} to {signed(row.high)}, {p_value(row.p)}"
    )


def _intents(results: Results) -> list[tuple[str, float | None, float | None, float | None]]:
    """Each intent with the accuracies of the majority label, of the user's last one, and the best of all, None where
    there is none."""
    models = results.models.values()
    names = dict.fromkeys([*results.majority, *(name for model in models for name in model.intents)])
    last, found = results.simple.get("last label", {}), []
    for name in names:
        simple = results.majority.get(name), last[name].accuracy if name in last else None
        known = [value for value in (*simple, *(m.intents.get(name) for m in models)) if value is not None]
        found.append((name, *simple, max(known, default=None)))
    return found


def _qualities(results: Results) -> Iterable[tuple[str, str, IntentQuality]]:
    """Each intent with who predicts it, the simplest first, and how well."""
    found = {**results.simple, **{model.label: model.quality for model in results.models.values()}}
    for intent in dict.fromkeys(name for qualities in found.values() for name in qualities):
        yield from ((intent, name, qualities[intent]) for name, qualities in found.items() if intent in qualities)


def _chart(results: Results, curve: str, x_label: str, y_label: str) -> Markup:
    series = {model.label: (index, getattr(model.curve, curve)) for index, model in enumerate(results.models.values())}
    return line_chart(series, x_label, y_label)


def _facts(data: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """The data set's facts as (name, text); nested ones by "name: sub"; the warnings stand elsewhere."""
    for key, value in data.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _facts(value, f"{name}: ")
        elif isinstance(value, list):
            if key != "warnings":
                yield name, ", ".join(value)
        else:
            yield name, value if isinstance(value, str) else number(value)


def _starred(value: float | None, best: float | None) -> str:
    return "-" if value is None else f"{value:.4f}{'*' if value == best else ' '}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]).rstrip())
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])
