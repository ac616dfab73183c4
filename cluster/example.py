"""One user of the test set for the report: history, predicted intents with their weights, the best items."""

from __future__ import annotations

import datetime
from typing import Any

import polars as pl
import torch

from embeddings.workers import Worker
from evaluation.evaluate import in_step
from evaluation.ranking import CatalogueRanker, Scorer
from evaluation.ranking import NeuralScorer as Neural
from ingest.data.batch import Batch, Lists
from ingest.data.manifest import Manifest
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join, open_file

SHOWN_HISTORY, SHOWN_ITEMS, SHOWN_LABELS = 15, 10, 5


def example_of(scorer: Scorer, reader: Reader, worker: Worker, filter_seen: bool) -> dict[str, Any] | None:
    """The indices and numbers of one target of the first batch, on the first worker; every worker calls it.

    Of the batch's users the one whose history is nearest to `SHOWN_HISTORY` interactions.
    """
    assert isinstance(scorer, Neural)
    batch = next(in_step(reader, worker), None)
    if batch is None:
        return None
    prediction = scorer.step.predict(batch)
    ranker = CatalogueRanker(scorer, reader.manifest.items, worker, filter_seen)
    item_QK, score_QK = ranker.top(prediction.query_QD, batch.seen, SHOWN_ITEMS)
    if not len(batch.target_Q) or batch.seen is None or prediction.attention_QM is None:
        return None
    known_Q = (batch.target_Q >= FIRST_VALUE).long()
    chosen = int(((batch.seen.lengths - SHOWN_HISTORY).abs() + 10_000 * (1 - known_Q)).argmin())
    return {
        "user": batch.users[int(batch.row_Q[chosen])],
        **_history(batch, int(batch.target_position_Q[chosen])),
        "intents": {name: logits[chosen].softmax(dim=0).tolist() for name, logits in prediction.intents.items()},
        "attention": dict(zip(prediction.intents, prediction.attention_QM[chosen].tolist(), strict=True)),
        "items": [i for i in item_QK[chosen].tolist() if i],
        "scores": score_QK[chosen].tolist(),
        "next": int(batch.target_Q[chosen]),
        "seen": _row(batch.seen, chosen),
    }


def _row(value: Lists, row: int) -> list[int]:
    end = int(value.lengths[: row + 1].sum())
    return [int(v) for v in value.values[end - int(value.lengths[row]) : end]]


def _history(batch: Batch, last: int) -> dict[str, Any]:
    """The tokens up to `last`, of its sequence."""
    begin = max(last - int(batch.position_T[last]), last - SHOWN_HISTORY + 1)
    rows = range(begin, last + 1)
    features: dict[str, list[list[int] | float]] = {}
    for name, value in batch.features.items():
        if isinstance(value, Lists):
            features[name] = [_row(value, row) for row in rows]
        elif value.dtype == torch.int64:
            features[name] = [[int(value[row])] for row in rows]
    return {"history": batch.item_T[begin : last + 1].tolist(), "times": batch.time_T[begin : last + 1].tolist(),
            "features": features}  # fmt: skip


def show(example: dict[str, Any], url: str, manifest: Manifest) -> dict[str, Any]:
    """The example with names instead of indices: the `example` part of results.json."""
    with open_file(join(url, "items.parquet")) as file:
        items = pl.read_parquet(file.read())
    ids = items["id"].to_list()
    titles = items["title"].to_list() if "title" in items.columns else [None] * len(ids)
    labels = {feature.name: _labels(url, feature.name) for feature in manifest.features if not feature.is_number}

    def title(item: int) -> str:
        if item < FIRST_VALUE:
            return "an item that is not in the vocabulary"
        return str(titles[item]) if titles[item] else f"item {ids[item]}"

    def identity(item: int) -> str | int:
        return ids[item] if item >= FIRST_VALUE else "unknown"

    history = [
        {
            "item": identity(item),
            "title": title(item),
            "time": _time(time, manifest),
            "features": {
                name: ", ".join(labels[name][value] for value in values[row])
                for name, values in example["features"].items()
            },
        }
        for row, (item, time) in enumerate(zip(example["history"], example["times"], strict=True))
    ]
    intents = {}
    for name, probabilities in example["intents"].items():
        named = [(labels[name][label + FIRST_VALUE], p) for label, p in enumerate(probabilities)]
        intents[name] = sorted(named, key=lambda pair: -pair[1])[:SHOWN_LABELS]
    top = [
        {
            "item": identity(item),
            "title": title(item),
            "score": score,
            "is_next": item == example["next"],
            "seen": item in example["seen"],
        }
        for item, score in zip(example["items"], example["scores"], strict=False)
    ]
    return {
        "user": example["user"],
        "history": history,
        "intents": intents,
        "attention": example["attention"],
        "top_items": top,
        "next_item": title(example["next"]),
    }


def _labels(url: str, feature: str) -> list[str]:
    with open_file(join(url, "vocab", f"{feature}.parquet")) as file:
        return [str(value) for value in pl.read_parquet(file.read())["value"].to_list()]


def _time(time: int, manifest: Manifest) -> str:
    if manifest.time_unit == "position":
        return f"position {time}"
    moment = datetime.datetime.fromtimestamp(time / 1000, tz=datetime.UTC)
    return moment.strftime("%a %d %b %Y %H:%M")
