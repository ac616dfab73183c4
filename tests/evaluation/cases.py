"""Sections of baselines, each with settings of its own, that are tested against references and on two workers."""

from __future__ import annotations

from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "newest first": {"kind": "recent", "order": "recency"},
    "newest three": {"kind": "recent", "order": "recency", "length": 3},
    "most frequent": {"kind": "recent", "order": "frequency"},
    "decayed": {"kind": "recent", "order": "decay", "half_life": 2.0},
    "decayed of four": {"kind": "recent", "order": "decay", "half_life": 5.0, "length": 4},
    "returns": {"kind": "returns", "by": None},
    "returns by action": {"kind": "returns", "by": "action"},
    "returns of three by device": {"kind": "returns", "by": "device", "length": 3},
    "last day": {"kind": "trending", "span": "1d", "live": False},
    "last hours": {"kind": "trending", "span": "3h", "live": False},
    "live, hours": {"kind": "trending", "span": "2h", "live": True},
    "live, days": {"kind": "trending", "span": "3d", "live": True},
    "last day on the device": {"kind": "trending", "span": "1d", "live": False, "by": "device"},
    "live on the device": {"kind": "trending", "span": "8h", "live": True, "by": "device"},
    "followed": {"kind": "followed", "span": "1d", "live": False, "half_life": "1d", "weight": 0.5, "length": 20},
    "followed, live": {"kind": "followed", "span": "2d", "live": True, "half_life": "3h", "weight": 0.8, "length": 4},
    "repeats": {"kind": "markov", "repeats": True},
    "nothing again": {"kind": "markov", "repeats": False},
    "cosine": {"kind": "item_knn", "neighbours": 5, "shrink": 0.0, "counted": False, "length": 50, "decay": 1.0},
    "shrunk": {"kind": "item_knn", "neighbours": 100, "shrink": 7.5, "counted": True, "length": 4, "decay": 0.5},
    "S-KNN": {"kind": "session_knn", "neighbours": 6, "sample": 500, "length": 20, "weights": "same", "idf": False,
              "cosine": True},
    "V-SKNN": {"kind": "session_knn", "neighbours": 4, "sample": 9, "length": 5, "weights": "linear", "idf": True,
               "cosine": False},
    "div": {"kind": "session_knn", "neighbours": 100, "sample": 20, "length": 9, "weights": "div", "idf": True,
            "cosine": True},
}  # fmt: skip
"""Sections of a config; but for the kind, they are what the reference takes."""
