"""Which item came after which in the training data, and how often."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig


def read_transitions(url: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Item, next item and count, sorted by both."""
    manifest = load_manifest(url)
    reader = Reader(url, manifest, load_items(url, manifest), "train", ReaderConfig())
    pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for rows in reader.rows():
        item = rows.columns["item"].astype(np.int64)
        inner = np.ones(len(item), dtype=bool)
        inner[rows.offsets[:-1][rows.lengths > 0]] = False
        after = np.flatnonzero(inner)
        found, number = np.unique(item[after - 1] * manifest.items + item[after], return_counts=True)
        pairs, places = np.unique(np.concatenate([pairs, found]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([counts, number]), len(pairs)).astype(np.int64)
    yield pairs // manifest.items, pairs % manifest.items, counts
