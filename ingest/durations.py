"""Spans of time in text, such as `7d`, and back."""

from __future__ import annotations

import datetime
import re

DAY_MS = 86_400_000
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS, "y": 365 * DAY_MS}


def parse_duration(text: str | int | float) -> int:
    """`"90s"`, `"7d"`, `"1.5h"` ... in milliseconds; `y` is 365 days. A bare number stands for itself."""
    if isinstance(text, int | float):
        return int(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|y)\s*", text)
    if match is None:
        raise ValueError("takes a number with a unit ms, s, m, h, d, w or y (365 days), such as 7d")
    return round(float(match[1]) * _UNITS_MS[match[2]])


def duration_text(milliseconds: float) -> str:
    """Such as `1.5h`, in the largest unit up to days that it fills."""
    for unit in ("d", "h", "m", "s"):
        if abs(milliseconds) >= _UNITS_MS[unit]:
            return f"{round(milliseconds / _UNITS_MS[unit], 1):g}{unit}"
    return f"{milliseconds:g}ms"


def since_1970(moment: datetime.datetime) -> int:
    """A moment in milliseconds since 1970; one without a time zone is of UTC."""
    return round(moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() * 1000)
