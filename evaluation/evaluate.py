"""Evaluates one model on one split: ranks of all targets, accuracy of every intent, weights of the intents.

Every worker reads its own rows and calls these functions at the same time; a worker that is through goes on with
empty batches until all are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from embeddings.workers import Worker, gather_objects, total
from evaluation.metrics import MISS, RankMetrics
from evaluation.ranking import CatalogueRanker, NeuralScorer, Scorer
from ingest.data.batch import Batch, Lists
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE
from trainer.loop import Validation
from trainer.losses import intent_hits
from trainer.recommender import Prediction
from trainer.step import Step


@dataclass
class Evaluation:
    """What one model did on a split. After `merged`: all workers' targets, in the same order for every model."""

    ranks: list[np.ndarray] = field(default_factory=list)
    users: list[object] = field(default_factory=list)
    """The user of each target."""
    unknown: int = 0
    """Targets whose item is not in the vocabulary: a miss."""
    filtered: int = 0
    """Targets that the filter of seen items took out: a miss."""
    hits: dict[str, list[int]] = field(default_factory=dict)
    """Hits and targets of each intent."""
    majority: dict[str, list[int]] = field(default_factory=dict)
    """The same for always naming the label that is most common in training."""
    attention: dict[str, float] = field(default_factory=dict)
    """Sum of each intent's weight over the targets."""

    @property
    def rank(self) -> np.ndarray:
        return np.concatenate(self.ranks) if self.ranks else np.zeros(0, dtype=np.int64)

    def metrics(self) -> dict[str, float]:
        counted = RankMetrics()
        counted.update(self.rank)
        return counted.compute()

    def intents(self) -> dict[str, float]:
        """Accuracy by intent; 0 where no target has a label."""
        return {name: hits / max(known, 1) for name, (hits, known) in self.hits.items()}

    def merged(self) -> Evaluation:
        """All workers' results together; every worker calls it."""
        merged = Evaluation()
        for part in gather_objects(self):
            merged.ranks += part.ranks
            merged.users += part.users
            merged.unknown += part.unknown
            merged.filtered += part.filtered
            for mine, theirs in ((merged.hits, part.hits), (merged.majority, part.majority)):
                for name, counts in theirs.items():
                    mine[name] = [a + b for a, b in zip(mine.get(name, [0, 0]), counts, strict=True)]
            for name, weight in part.attention.items():
                merged.attention[name] = merged.attention.get(name, 0.0) + weight
        return merged

    def mean_attention(self) -> dict[str, float]:
        return {name: weight / max(len(self.users), 1) for name, weight in self.attention.items()}


def in_step(reader: Reader, worker: Worker) -> Iterator[Batch]:
    """The reader's batches, and empty ones until every worker is through."""
    stream = reader.epoch(0)
    empty = reader.builder.empty()
    while True:
        found = next(stream, None)
        active = torch.tensor([float(found is not None)], device=worker.device)
        if not total(active).item():
            return
        yield (found[0] if found is not None else empty).to(worker.device)


def shown(batches: Iterator[Batch], reader: Reader, worker: Worker, doing: str) -> Iterator[Batch]:
    """The reader's `batches`, while a progress bar counts the first worker's users."""
    of = f", 1 of {worker.workers} workers" if worker.workers > 1 else ""
    with worker.progress(reader.own_rows(), doing + of) as bar:
        for batch in batches:
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
) -> Evaluation:
    """Rank every target of the reader's split; this worker's part of the result.

    `doing`: what the progress bar says. `majority`: the label index that is most common in training, by intent.
    """
    ranker = CatalogueRanker(scorer, reader.manifest.items, worker, filter_seen)
    result = Evaluation()
    for batch in shown(in_step(reader, worker), reader, worker, doing):
        prediction: Prediction | None = None
        if isinstance(scorer, NeuralScorer):
            prediction = scorer.step.predict(batch)
            queries = prediction.query_QD
        else:
            queries = scorer.queries(batch)
        ranks = ranker.ranks(queries, batch.target_Q, batch.seen)
        _count(result, batch, ranks.cpu().numpy(), prediction, majority or {})
    return result


def _count(
    result: Evaluation, batch: Batch, ranks: np.ndarray, prediction: Prediction | None, majority: dict[str, int]
) -> None:
    result.ranks.append(ranks)
    result.users += [batch.users[row] for row in batch.row_Q.tolist()]
    unknown = int((batch.target_Q < FIRST_VALUE).sum())
    result.unknown += unknown
    result.filtered += int((ranks == MISS).sum()) - unknown
    for name, label in majority.items():
        hits_Q, known_Q = _hits(batch.labels[name], label)
        _add(result.majority, name, hits_Q, known_Q)
    if prediction is None:
        return
    for name, logits_QL in prediction.intents.items():
        _add(result.hits, name, *intent_hits(logits_QL, batch.labels[name]))
    if prediction.attention_QM is not None:
        for name, weight in zip(prediction.intents, prediction.attention_QM.sum(dim=0).tolist(), strict=True):
            result.attention[name] = result.attention.get(name, 0.0) + weight


def _hits(label: torch.Tensor | Lists, always: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = len(label.lengths) if isinstance(label, Lists) else len(label)
    values = label.values if isinstance(label, Lists) else label
    one_hot_QL = torch.zeros(targets, max(always - FIRST_VALUE + 1, 1), device=values.device)
    one_hot_QL[:, always - FIRST_VALUE] = 1
    return intent_hits(one_hot_QL, label)


def _add(counts: dict[str, list[int]], name: str, hits_Q: torch.Tensor, known_Q: torch.Tensor) -> None:
    before = counts.get(name, [0, 0])
    counts[name] = [before[0] + int((hits_Q & known_Q).sum()), before[1] + int(known_Q.sum())]


def validate(step: Step, reader: Reader, worker: Worker, filter_seen: bool) -> Validation:
    """The validation that the trainer calls at the end of each epoch."""
    merged = evaluate(NeuralScorer(step), reader, worker, filter_seen, "validate").merged()
    return Validation(merged.metrics(), merged.intents(), merged.mean_attention())


def label_counts(reader: Reader, worker: Worker) -> dict[str, np.ndarray]:
    """How often each label of every intent comes among this worker's training targets, by index."""
    counts = {feature.name: np.zeros(feature.size, dtype=np.int64) for feature in reader.manifest.intents}
    batches = (batch for batch, _ in reader.epoch(0))
    for batch in shown(batches, reader, worker, "count labels"):
        for name, label in batch.labels.items():
            values = label.values if isinstance(label, Lists) else label
            counts[name] += np.bincount(values.numpy(), minlength=len(counts[name]))
    return counts


def majority_labels(counts: dict[str, np.ndarray]) -> dict[str, int]:
    """The known label that is most common, by intent."""
    return {name: int(number[FIRST_VALUE:].argmax()) + FIRST_VALUE for name, number in counts.items()}
