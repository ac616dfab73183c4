"""Line and interval charts as inline SVG: a report that needs no network, no script and no plotting library.

Colours are CSS classes (series-0 ... series-7) that the page defines for light and dark mode. Text from data is
escaped by Markup. A long series is thinned to some hundred points, so the page's size does not grow with the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from evaluation.results import Comparison

Points = Sequence[tuple[float, float]]

SERIES_COLOURS = 8
"""How many series colours the page defines; further series start again from the first."""

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
_NAMES = 190
_MOST_POINTS, _MOST_DOTS = 240, 30


def line_chart(series: dict[str, tuple[int, Points]], x_label: str, y_label: str) -> Markup:
    """An SVG with a line for each name in `series` (its colour's number, its points in order of x).

    Axes with round ticks, a marker on every point where there are few; the legend is the page's, by the colours.
    Series without points are passed over; without any point at all there is no chart, only empty text.
    """
    lines = {name: (colour, thin(points)) for name, (colour, points) in series.items() if points}
    if not lines:
        return Markup("")
    xs = [x for _, points in lines.values() for x, _ in points]
    ys = [y for _, points in lines.values() for _, y in points]
    x_range, y_range = (min(xs), max(xs)), _padded(min(ys), max(ys))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return _scale(x, x_range, _LEFT, right), _scale(y, y_range, bottom, _TOP)

    parts = [_element("line", class_="base", x1=_LEFT, x2=right, y1=bottom, y2=bottom)]
    for tick in round_ticks(*y_range):
        y = place(0, tick)[1]
        parts += [
            _element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y),
            _text(number(tick), _LEFT - 8, y + 4, "end"),
        ]
    parts += [
        _text(number(tick), place(tick, 0)[0], bottom + 18) for tick in round_ticks(*x_range) if tick == int(tick)
    ]
    for name, (colour, points) in lines.items():
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        dots = points if len(points) <= _MOST_DOTS else points[-1:]
        circles = [_dot(*place(x, y), f"{name}, {number(x)}: {y:.4f}") for x, y in dots]
        parts.append(
            _element("g", _element("polyline", points=path), *circles, class_=f"series-{colour % SERIES_COLOURS}")
        )
    parts.append(_text(x_label, (_LEFT + right) / 2, _HEIGHT - 6, class_="axis"))
    turn = f"translate(14 {(_TOP + bottom) / 2}) rotate(-90)"
    parts.append(_text(y_label, 0, 0, class_="axis", transform=turn))
    return _figure(parts, _HEIGHT, f"{y_label} by {x_label}")


def interval_chart(rows: Sequence[tuple[str, Comparison]]) -> Markup:
    """An SVG of differences with their 95 % intervals, a row each, beside the line of no difference."""
    if not rows:
        return Markup("")
    ends = [0.0, *(end for _, row in rows for end in (row.low, row.high, row.difference))]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    span, bottom = (min(ends) - margin, max(ends) + margin), 30 * len(rows) + 10

    def place(x: float) -> float:
        return _scale(x, span, _NAMES, _WIDTH - _RIGHT)

    parts = []
    for tick in round_ticks(*span, most=5):
        x, kind = place(tick), "zero" if tick == 0 else "grid"
        parts += [_element("line", class_=kind, x1=x, x2=x, y1=6, y2=bottom), _text(number(tick), x, bottom + 16)]
    for index, (name, row) in enumerate(rows):
        y = 24 + 30 * index
        line = _element("line", x1=place(row.low), x2=place(row.high), y1=y, y2=y)
        label = f"{name}: {signed(row.difference)} [{signed(row.low)}, {signed(row.high)}]"
        dot = _dot(place(row.difference), y, label, radius=5)
        parts.append(
            _element("g", _text(_clip(name), _NAMES - 14, y + 4, "end"), line, dot, class_=f"interval {row.verdict}")
        )
    metric = rows[0][1].metric
    parts.append(_text(f"difference in {metric}", (_NAMES + _WIDTH - _RIGHT) / 2, bottom + 36, class_="axis"))
    return _figure(parts, bottom + 44, f"Differences in {metric} with 95 % intervals")


def thin(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: neighbours are averaged, so that a spike shows and noise does not hide the trend."""
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, both included, at most `most` + 1."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's or a count's text: 12,000, 0.25, 3e-05."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def signed(value: float) -> str:
    """A difference: +0.0123."""
    return f"{value:+.4f}"


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin if low < 0 or low > margin else 0.0, high + margin


def _scale(value: float, span: tuple[float, float], start: float, end: float) -> float:
    low, high = span
    share = (value - low) / (high - low) if high > low else 0.5
    return start + share * (end - start)


def _element(tag: str, *content: Markup | str, **attributes: float | str) -> Markup:
    """One SVG element; content and attributes are escaped, `class_` is class, x_y is x-y."""
    texts = {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else value
        for name, value in attributes.items()
    }
    opening = Markup("").join(Markup(' {}="{}"').format(name, text) for name, text in texts.items())
    return Markup("<{0}{1}>{2}</{0}>").format(tag, opening, Markup("").join(content))


def _text(text: str, x: float, y: float, anchor: str = "middle", class_: str = "tick", **more: str) -> Markup:
    return _element("text", text, x=x, y=y, text_anchor=anchor, class_=class_, **more)


def _dot(x: float, y: float, label: str, radius: int = 3) -> Markup:
    return _element("circle", _element("title", label), cx=x, cy=y, r=radius)


def _figure(parts: Sequence[Markup], height: int, label: str) -> Markup:
    return _element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=label)


def _clip(text: str, length: int = 27) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
