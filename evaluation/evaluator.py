"""Evaluates all models of a run on the test split: what results.json and the report say of them.

Models are evaluated one after the other, each by all workers; then the first is compared with the others on the targets
that every worker has written (evaluation/targets.py). Memory holds one model, and counts.
"""

from __future__ import annotations

import os
import platform
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.distributed as dist

from embeddings.workers import Worker, gather_objects
from evaluation.baselines.base import BaselineConfig, Prepared
from evaluation.choice import choose
from evaluation.evaluate import Evaluation, accuracy, evaluate
from evaluation.evaluation_config import EvaluateConfig
from evaluation.example import example_of
from evaluation.metrics import target_values
from evaluation.model import Model
from evaluation.parquet import part_writer
from evaluation.ranking import NeuralScorer, Scorer
from evaluation.results import (
    Comparison,
    Curve,
    Evaluated,
    Example,
    IntentQuality,
    Latency,
    ModelResults,
    Protocol,
    Segment,
    Training,
)
from evaluation.segments import SegmentSums, segments_of
from evaluation.significance import Differences, compare
from evaluation.targets import TargetWriter, paired
from evaluation.timing import timed
from evaluation.vocabulary import values
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from ingest.durations import parse_duration
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join, remove
from trainer.candidates import Known
from trainer.models.registry import NeuralConfig
from trainer.progress import Progress


@dataclass(frozen=True)
class EvaluationRun:
    """What is evaluated."""

    data: str
    """Folder of the prepared data set."""
    targets: str
    """Folder for the targets of every model; what is there is replaced."""
    models: list[Model]
    """The first is compared with the others."""
    settings: EvaluateConfig
    seed: int
    """Of the comparisons' draws."""
    validation_metric: str
    """By which training chose its epochs."""
    log: str | None = None
    """Folder of the log that the data set was prepared from, where the run has made it by `simulate`."""


def evaluate_models(run: EvaluationRun, worker: Worker) -> Evaluated:
    """Evaluate the models; every worker calls it, and what the first one gets is the result."""
    return _Evaluator(run, worker).evaluated()


class _Evaluator:
    def __init__(self, run: EvaluationRun, worker: Worker) -> None:
        self.run, self.worker = run, worker
        self.manifest = load_manifest(run.data)
        self.items = load_items(run.data, self.manifest)
        self.ids = values(run.data, "item")
        self.example: Example | None = None
        self.skipped: set[tuple[str, int, int, str]] = set()
        """Row groups that were set aside in training or now: shard, row group, rows, reason."""

    def evaluated(self) -> Evaluated:
        if not self.manifest.shards["test"]:
            raise InputError(f"{self.run.data}: no user has a test target, so there is no accuracy to report")
        if self.worker.first:
            remove(self.run.targets)
        dist.barrier()
        first, *others = self.run.models
        results, evaluation = self._evaluate(first)
        models = {first.name: results} | {model.name: self._evaluate(model)[0] for model in others}
        versus, segments = self._compared(models)
        models[first.name] = results.model_copy(update={"versus": versus})
        return Evaluated(
            protocol=Protocol(
                split=self.manifest.split["kind"],
                filter_seen=self.run.settings.filter_seen,
                catalogue_size=self.manifest.catalogue - FIRST_VALUE,
                targets=evaluation.ranks.targets,
                unknown_targets=evaluation.unknown,
                filtered_targets=evaluation.filtered,
                validation_metric=self.run.validation_metric,
                metric=self.run.settings.metric,
            ),
            models=models,
            majority=accuracy(evaluation.majority),
            simple=_simple(evaluation),
            segments=segments,
            example=self.example,
            machine=_machine(self.worker),
            warnings=[f"{rows} rows were set aside: {reason}" for _, _, rows, reason in sorted(self.skipped)],
        )

    def _evaluate(self, model: Model) -> tuple[ModelResults, Evaluation]:
        filter_seen = self.run.settings.filter_seen
        reader = Reader(self.run.data, self.manifest, self.items, "test", model.train.reader,
                        rank=self.worker.rank, workers=self.worker.workers, evaluate=True)  # fmt: skip
        facts: dict[str, Any]
        scorer: Scorer
        if isinstance(model.config, BaselineConfig):
            data = Prepared(self.run.data, self.manifest, self.items, self.worker, model.train.reader,
                            log=self.run.log)  # fmt: skip
            config, chosen = choose(model, data, filter_seen)
            scorer, facts = config.scorer(data), {"inputs": config.inputs, "oracle": config.oracle, "chosen": chosen}
            self.skipped.update(astuple(entry) for part in gather_objects(data.skipped) for entry in part)
        else:
            scorer, progress = model.restored(self.manifest, self.worker, Known(self.run.data, self.items))
            self.skipped.update((path, group, rows, reason) for path, group, rows, reason in progress.skipped)
            assert isinstance(model.config, NeuralConfig)
            facts = _facts(model.config, scorer, progress)
            if self.example is None:
                self.example = example_of(scorer, reader, self.worker, filter_seen)
        with part_writer(join(self.run.targets, model.name), self.worker) as part:
            session = parse_duration(self.run.settings.session)
            user = reader.source.user_type()
            targets = TargetWriter(part, self.manifest, user, self.ids, self.items.counts, session)
            doing = f"evaluate {model.name}"
            majority = self.manifest.majority if model is self.run.models[0] else None
            found = evaluate(scorer, reader, self.worker, filter_seen, doing, majority, targets)
        self.skipped.update(astuple(entry) for part in gather_objects(reader.skipped) for entry in part)
        if self.run.settings.timing and not facts.get("oracle"):
            facts["latency"] = self._timed(scorer, model.train.reader)
        results = ModelResults(
            kind=model.config.kind,
            label=model.name,
            metrics=found.ranks.compute(),
            intents=accuracy(found.intents),
            quality={name: counts.quality() for name, counts in found.intents.items()},
            attention=found.mean_attention(),
            **facts,
        )
        return results, found

    def _timed(self, scorer: Scorer, config: ReaderConfig) -> Latency | None:
        alone, together = (
            Reader(self.run.data, self.manifest, self.items, "test", each, rank=self.worker.rank,
                   workers=self.worker.workers, after_last=True)
            for each in (config.model_copy(update={"tokens": 1}), config)
        )  # fmt: skip
        return timed(scorer, alone, together, self.worker, self.run.settings.filter_seen)

    def _compared(self, results: dict[str, ModelResults]) -> tuple[dict[str, Comparison], list[Segment]]:
        """How the first model compares with the others that compete, and where all are good: counted and drawn by all
        workers, each a part.
        """
        models = [name for name, found in results.items() if not found.oracle]
        first = next(iter(results))
        if first not in models:
            return {}, []
        others = models[1:]
        control = next((name for name in others if results[name].kind == "deep"), None)
        run, metric, worker = self.run, self.run.settings.metric, self.worker
        kinds = segments_of(self.manifest.time_unit == "time", list(results[first].intents))
        sums = SegmentSums(kinds, models, control, metric)
        own = {other: Differences(run.settings.resamples) for other in others}
        users = sum(shard.rows for shard in self.manifest.shards["test"]) // worker.workers
        with worker.progress(users, "compare") as bar:
            for user_N, ranks, facts in paired(run.targets, models, worker):
                sums.add(user_N, ranks, facts)
                value_N = target_values(ranks[first], metric)
                for other in others:
                    own[other].add(value_N - target_values(ranks[other], metric), user_N)
                if bar is not None:
                    bar.update(int(user_N.max(initial=-1)) + 1)
        parts = gather_objects(own)
        drawn = {}
        for other in others[worker.rank :: worker.workers]:
            together = Differences(run.settings.resamples)
            for part in parts:
                together.merge(part[other])
            drawn[other] = compare(together, metric, run.seed)
        found = {other: comparison for part in gather_objects(drawn) for other, comparison in part.items()}
        segments = sums.found(gather_objects(sums.sums), run.settings.resamples)
        return {other: found[other] for other in others}, segments


def _machine(worker: Worker) -> str:
    card = [torch.cuda.get_device_name(worker.device)] if worker.device.type == "cuda" else []
    words = [platform.machine(), f"{os.cpu_count()} cores", *card, platform.system()]
    return ", ".join([*words, f"{worker.workers} worker{'s' * (worker.workers > 1)}"])


def _simple(found: Evaluation) -> dict[str, dict[str, IntentQuality]]:
    """What to name intents without training comes to; the log loss is that of the labels' shares."""
    majority = {
        name: counts.quality().model_copy(update={"log_loss": counts.shares_log_loss})
        for name, counts in found.majority.items()
    }
    return {"majority label": majority, "last label": {name: counts.quality() for name, counts in found.last.items()}}


def _training(progress: Progress) -> Training | None:
    """None of checkpoints that do not say what it took."""
    if not progress.steps_seconds or not progress.epoch:
        return None
    return Training(
        epochs=progress.epoch,
        epoch_seconds=progress.steps_seconds / progress.epoch,
        targets_per_second=progress.targets / progress.steps_seconds,
        memory_gib=progress.memory_gib,
    )


def _facts(config: NeuralConfig, scorer: NeuralScorer, progress: Progress) -> dict[str, Any]:
    """What the report says of a model's size and training."""
    recommender, train = scorer.step.recommender, scorer.step.config
    tables = recommender.tables.configs
    rows = sum(config.num_embeddings for config in tables)
    parts = recommender.network, recommender.scores
    trained = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return {
        "inputs": ", ".join([*config.inputs(scorer.step.manifest), *scorer.step.knows]),
        "parameters": rows * train.tables.dimension + trained,
        "table_parameters": rows * train.tables.dimension,
        "training": _training(progress),
        "knows": scorer.step.knows,
        "live": not {"recent", "transitions"}.isdisjoint(scorer.step.knows) and scorer.step.candidates.settings.live,
        "best_epoch": progress.best_epoch,
        "seconds": progress.seconds,
        "curve": Curve(train=progress.train_curve, validation=progress.validation_curve),
    }
