"""Evaluates one model on one split: ranks of all targets, accuracy of every intent, weights of the intents.

Every worker reads its own rows and calls these functions at the same time; a worker that is through goes on with
empty batches until all are. What is kept are counts, so memory does not grow with the targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from embeddings.workers import Worker, gather_objects, lockstep_batches, total
from evaluation.intents import IntentCounts, last_label
from evaluation.metrics import MISS, Ints, RankMetrics
from evaluation.ranking import CatalogueRanker, NeuralScorer, Scorer
from evaluation.targets import TargetWriter
from ingest.data.batch import Batch
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE
from trainer.loop import Validation
from trainer.losses import intent_hits
from trainer.recommender import Prediction
from trainer.step import Step


@dataclass
class Evaluation:
    """Counts of what one model did on a split."""

    ranks: RankMetrics
    unknown: int = 0
    """Targets whose item training does not know: a miss, but for what scores items without a row of the table."""
    filtered: int = 0
    """Targets that training knows and the filter of seen items took out: a miss."""
    intents: dict[str, IntentCounts] = field(default_factory=dict)
    majority: dict[str, IntentCounts] = field(default_factory=dict)
    """Of always naming the label that is most common in training."""
    last: dict[str, IntentCounts] = field(default_factory=dict)
    """Of naming that of the user's last interaction."""
    attention: dict[str, float] = field(default_factory=dict)
    """Sum of each intent's weight over the targets."""

    def mean_attention(self) -> dict[str, float]:
        return {name: weight / max(self.ranks.targets, 1) for name, weight in self.attention.items()}

    def count(self, batch: Batch, prediction: Prediction, ranks: Ints) -> None:
        """Add a batch with its targets' ranks."""
        self.ranks.update(ranks)
        known_Q = batch.known_Q.cpu().numpy()
        self.unknown += int((~known_Q).sum())
        self.filtered += int(((ranks == MISS) & known_Q).sum())
        found = {name: IntentCounts.of(logits, batch.labels[name]) for name, logits in prediction.intents.items()}
        _add(self.intents, found)
        if prediction.attention_QM is not None:
            weights = prediction.attention_QM.double().sum(dim=0).tolist()
            _add(self.attention, dict(zip(prediction.intents, weights, strict=True)))

    def count_simple(self, batch: Batch, majority: dict[str, int], labels: dict[str, int]) -> None:
        """Add what the simplest ways to name labels do; by intent, `majority` is the label index that is most common,
        and `labels` how many there are."""
        for name, most in majority.items():
            always_Q, last_Q = torch.full_like(batch.target_Q, most), last_label(batch, name, most)
            for sums, top_Q in ((self.majority, always_Q), (self.last, last_Q)):
                _add(sums, {name: IntentCounts.of_labels(top_Q, batch.labels[name], labels[name])})

    def merged(self, worker: Worker) -> Evaluation:
        """All workers' counts together; every worker calls it."""
        merged = Evaluation(RankMetrics(total(torch.from_numpy(self.ranks.counts).to(worker.device)).cpu().numpy()))
        for part in gather_objects(replace(self, ranks=RankMetrics.of(0))):
            merged.unknown, merged.filtered = merged.unknown + part.unknown, merged.filtered + part.filtered
            for sums, found in (
                (merged.intents, part.intents),
                (merged.majority, part.majority),
                (merged.last, part.last),
                (merged.attention, part.attention),
            ):
                _add(sums, found)
        return merged


def _add(sums: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def accuracy(counts: dict[str, IntentCounts]) -> dict[str, float]:
    """By intent."""
    return {name: found.accuracy for name, found in counts.items()}


def batches_of(reader: Reader, worker: Worker, doing: str) -> Iterator[Batch]:
    """The reader's batches on the worker's device, and empty ones until every worker is through."""
    own = (batch for batch, _ in reader.epoch(0))
    for batch, _ in lockstep_batches(own, reader.builder.empty(), worker, doing=f"{doing}, batch"):
        yield batch.to(worker.device)


def with_progress(reader: Reader, worker: Worker, doing: str) -> Iterator[Batch]:
    """`batches_of` the reader, while a progress bar counts the first worker's users; `doing`: what the bar says."""
    of = f", 1 of {worker.workers} workers" if worker.workers > 1 else ""
    with worker.progress(reader.own_rows(), doing + of) as bar:
        for batch in batches_of(reader, worker, doing):
            yield batch
            if bar is not None:
                bar.update(batch.rows)


def evaluate(
    scorer: Scorer,
    reader: Reader,
    worker: Worker,
    filter_seen: bool,
    doing: str,
    majority: dict[str, int] | None = None,
    targets: TargetWriter | None = None,
) -> Evaluation:
    """Rank every target of the reader's split: all workers' counts.

    `majority`: the label index that is most common in training, by intent, where the simplest ways to name labels are
    to be counted. `targets`: where this worker's go.
    """
    ranker = CatalogueRanker(scorer, reader.manifest.items, reader.manifest.catalogue, worker, filter_seen)
    result = Evaluation(RankMetrics.of(reader.manifest.catalogue))
    for batch in with_progress(reader, worker, doing):
        prediction = scorer.predict(batch)
        ranks = ranker.ranks(prediction.query, batch.target_Q, batch.seen).cpu().numpy()
        hits = {
            name: intent_hits(logits_QL.argmax(dim=1) + FIRST_VALUE, batch.labels[name])
            for name, logits_QL in prediction.intents.items()
        }
        result.count(batch, prediction, ranks)
        result.count_simple(batch, majority or {}, reader.manifest.labels)
        if targets is not None and batch.rows:
            targets.add(batch, ranks, hits)
    return result.merged(worker)


def validate(step: Step, reader: Reader, worker: Worker, filter_seen: bool) -> Validation:
    """The validation that the trainer calls at the end of each epoch."""
    found = evaluate(NeuralScorer(step), reader, worker, filter_seen, "validate")
    return Validation(found.ranks.compute(), accuracy(found.intents), found.mean_attention())
