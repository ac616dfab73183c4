"""One user of the test set for the report: history, predicted intents with their weights, the best items."""

from __future__ import annotations

import datetime

import pyarrow.parquet as pq
import torch

from embeddings.workers import SLOW, Worker, gather_objects
from evaluation.evaluate import batches_of
from evaluation.ranking import CatalogueRanker, Scorer
from evaluation.results import Example, Interaction, Recommendation
from evaluation.vocabulary import values
from ingest.arrow_files import open_arrow
from ingest.data.batch import Batch, Lists
from ingest.data.manifest import Manifest
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join
from trainer.recommender import Prediction

SHOWN_HISTORY, SHOWN_ITEMS, SHOWN_LABELS = 15, 10, 5


def example_of(scorer: Scorer, reader: Reader, worker: Worker, filter_seen: bool) -> Example | None:
    """A target of the first worker's first batch; None where the model predicts no intents. Every worker calls it."""
    batch = next(batches_of(reader, worker, "example"), None)
    worker.at("example", SLOW)  # its first batch may be compiled
    if batch is None:
        return None
    prediction = scorer.predict(batch)
    ranker = CatalogueRanker(scorer, reader.manifest.items, reader.manifest.catalogue, worker, filter_seen)
    item_QK, score_QK = ranker.top(prediction.query, batch.seen, SHOWN_ITEMS)
    example = None
    if worker.first and prediction.intents and len(batch.target_Q):
        chosen = _choose(batch)
        items = [(item, score) for item, score in zip(item_QK[chosen].tolist(), score_QK[chosen].tolist(), strict=True)]
        example = _Names(reader.source.url, reader.manifest).example(batch, prediction, chosen, items)
    found: Example | None = gather_objects(example)[0]
    return found


def _choose(batch: Batch) -> int:
    """The target with a known item whose history is nearest to `SHOWN_HISTORY` interactions."""
    assert batch.seen is not None
    unknown_Q = (~batch.known_Q).long()
    return int(((batch.seen.lengths - SHOWN_HISTORY).abs() + 10_000 * unknown_Q).argmin())


class _Names:
    """Ids, titles and labels of a data set instead of indices."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self.ids = values(url, "item").to_pylist()
        with open_arrow(join(url, "items.parquet")) as file:
            items = pq.ParquetFile(file)
            titled = "title" in items.schema_arrow.names
            titles = items.read(["title"]) if titled else {}
        self.titles = titles["title"].to_pylist() if titled else [None] * len(self.ids)
        self.labels = {
            feature.name: [str(value) for value in values(url, feature.name).to_pylist()]
            for feature in manifest.features
            if not feature.is_number
        }

    def example(self, batch: Batch, prediction: Prediction, chosen: int, items: list[tuple[int, float]]) -> Example:
        """Of the target `chosen`, for which the model says `items` with their scores."""
        assert batch.seen is not None
        following, seen = int(batch.target_Q[chosen]), _row(batch.seen, chosen)
        weights = prediction.attention_QM[chosen].tolist() if prediction.attention_QM is not None else []
        user = batch.users[int(batch.row_Q[chosen])]
        assert isinstance(user, str | int)
        return Example(
            user=user,
            history=self._history(batch, int(batch.target_position_Q[chosen])),
            intents={name: self._likeliest(name, logits[chosen]) for name, logits in prediction.intents.items()},
            attention=dict(zip(prediction.intents, weights, strict=False)),
            top_items=[
                Recommendation(
                    item=self._id(item),
                    title=self._title(item),
                    score=score,
                    is_next=item == following,
                    seen=item in seen,
                )
                for item, score in items
                if item
            ],
            next_item=self._title(following),
        )

    def _history(self, batch: Batch, last: int) -> list[Interaction]:
        """The tokens up to `last`, of its sequence."""
        begin = max(last - int(batch.position_T[last]), last - SHOWN_HISTORY + 1)
        return [
            Interaction(
                item=self._id(int(batch.item_T[token])),
                title=self._title(int(batch.item_T[token])),
                time=self._time(int(batch.time_T[token])),
                features={
                    name: ", ".join(self.labels[name][index] for index in _row(value, token))
                    for name, value in batch.features.items()
                    if name in self.labels
                },
            )
            for token in range(begin, last + 1)
        ]

    def _likeliest(self, intent: str, logits_L: torch.Tensor) -> list[tuple[str, float]]:
        probabilities = enumerate(logits_L.softmax(dim=0).tolist(), FIRST_VALUE)
        best = sorted(probabilities, key=lambda pair: -pair[1])[:SHOWN_LABELS]
        return [(self.labels[intent][label], probability) for label, probability in best]

    def _title(self, item: int) -> str:
        if item < FIRST_VALUE:
            return "an item that is not in the vocabulary"
        return str(self.titles[item] or f"item {self.ids[item]}")

    def _id(self, item: int) -> str | int:
        return self.ids[item] if item >= FIRST_VALUE else "unknown"

    def _time(self, time: int) -> str:
        if self.manifest.time_unit == "position":
            return f"position {time}"
        return datetime.datetime.fromtimestamp(time / 1000, tz=datetime.UTC).strftime("%a %d %b %Y %H:%M")


def _row(value: torch.Tensor | Lists, row: int) -> list[int]:
    """The index at `row`, or the list of them."""
    if not isinstance(value, Lists):
        return [int(value[row])]
    end = int(value.lengths[: row + 1].sum())
    return [int(v) for v in value.values[end - int(value.lengths[row]) : end]]
