"""What runs inside the workers: training the models of a config, recommending, evaluating.

The one place where data, models, trainer and evaluation meet. All workers call these functions, which give JSON.
"""

from __future__ import annotations

import functools
import time
from dataclasses import astuple
from typing import Any

import torch

from cluster.config import Config
from cluster.example import example_of, show
from embeddings.workers import Worker, gather_objects
from evaluation.baselines import Markov, Popularity
from evaluation.evaluate import Evaluation, evaluate, label_counts, majority_labels, validate
from evaluation.evaluation_config import MarkovConfig, PopularityConfig, RecommendConfig
from evaluation.ranking import NeuralScorer, Scorer
from evaluation.recommend import Names, recommend
from evaluation.significance import compare
from ingest.data.items import ItemTable, load_items
from ingest.data.manifest import Manifest, SplitName, load_manifest
from ingest.data.reader import Reader
from ingest.data.reader_config import ReaderConfig
from trainer.checkpoint import Checkpoints
from trainer.loop import Run, Trainer
from trainer.models.registry import NeuralConfig
from trainer.progress import Progress
from trainer.step import Step


def run_stages(arguments: dict[str, Any], worker: Worker) -> dict[str, Any]:
    """Run `arguments["stages"]`, stage -> what it takes, for the config `arguments["config"]`.

    Gives what each stage found, by stage, and under "seconds" what each took.
    """
    config = Config.model_validate(arguments["config"])
    found: dict[str, Any] = {"seconds": {}}
    for stage, given in arguments["stages"].items():
        began = time.perf_counter()
        if stage == "train":
            train_models(config, given, worker)
        else:
            found[stage] = (recommend_users if stage == "recommend" else evaluate_models)(config, worker)
        found["seconds"][stage] = time.perf_counter() - began
    return found


def train_models(config: Config, models: list[str], worker: Worker) -> None:
    """Train `models` of the config, one after the other."""
    manifest = load_manifest(config.data_folder)
    counts = any(config.train_config(name).loss.needs_counts for name in models)
    items = load_items(config.data_folder, manifest, counts)
    for name in models:
        train = config.train_config(name)
        reader = _reader(config, manifest, items, "validation", train.reader, worker, True)
        model = config.models[name]
        assert isinstance(model, NeuralConfig)
        run = Run(name, model, train, config.data_folder, config.model_folder(name), config.text())
        check = functools.partial(validate, reader=reader, worker=worker, filter_seen=config.evaluate.filter_seen)
        Trainer(run, worker, check, items).fit()


def _reader(
    config: Config,
    manifest: Manifest,
    items: ItemTable,
    split: SplitName,
    settings: ReaderConfig,
    worker: Worker,
    evaluating: bool,
) -> Reader:
    return Reader(
        config.data_folder,
        manifest,
        items,
        split,
        settings,
        rank=worker.rank,
        workers=worker.workers,
        evaluate=evaluating,
    )


class _Evaluating:
    """The evaluation of every model of a config on the test split."""

    def __init__(self, config: Config, worker: Worker) -> None:
        self.config, self.worker = config, worker
        self.manifest = load_manifest(config.data_folder)
        self.items = load_items(config.data_folder, self.manifest)
        self.filter_seen = config.evaluate.filter_seen
        train = Reader(config.data_folder, self.manifest, self.items, "train", config.train.reader,
                       rank=worker.rank, workers=worker.workers)  # fmt: skip
        own = label_counts(train, worker)
        parts = gather_objects(own)
        self.majority = majority_labels({name: sum(part[name] for part in parts) for name in own})

    def run(self) -> dict[str, Any]:
        evaluations: dict[str, Evaluation] = {}
        skipped: set[tuple[Any, ...]] = set()
        models: dict[str, dict[str, Any]] = {}
        example = None
        for name, model in self.config.models.items():
            facts: dict[str, Any]
            if isinstance(model, NeuralConfig):
                step, progress, facts = self._restored(name, model)
                skipped.update(map(tuple, progress.skipped))
                scorer: Scorer = NeuralScorer(step)
                reader = self._test(self.config.train_config(name).reader)
                if example is None and facts["kind"] == "intentrec":
                    example = example_of(scorer, reader, self.worker, self.filter_seen)
            else:
                scorer, facts = self._counted(model), {"inputs": "items", "parameters": None}
                reader = self._test(self.config.train.reader)
            evaluation = evaluate(
                scorer, reader, self.worker, self.filter_seen, f"evaluate {name}", self.majority
            ).merged()
            skipped.update(astuple(entry) for part in gather_objects(reader.skipped) for entry in part)
            evaluations[name] = evaluation
            models[name] = self._facts(name, facts, evaluation)
        first = next(iter(evaluations.values()))
        return {
            "models": self._compared(models, evaluations),
            "majority": {name: hits / max(known, 1) for name, (hits, known) in first.majority.items()},
            "example": show(example, self.config.data_folder, self.manifest) if self.worker.first and example else None,
            "warnings": [f"{rows} rows were set aside: {reason}" for _, _, rows, reason in sorted(skipped)],
            "protocol": {
                "split": self.config.data.split.kind,
                "filter_seen": self.filter_seen,
                "catalogue_size": self.manifest.items - 2,
                "targets": len(first.users),
                "unknown_targets": first.unknown,
                "filtered_targets": first.filtered,
                "validation_metric": self.config.train.metric,
            },
        }

    def _test(self, settings: ReaderConfig) -> Reader:
        return _reader(self.config, self.manifest, self.items, "test", settings, self.worker, True)

    def _restored(self, name: str, model: NeuralConfig) -> tuple[Step, Progress, dict[str, Any]]:
        """The model's best checkpoint, where its training ended, and what the report says of its training."""
        train = self.config.train_config(name)
        checkpoints = Checkpoints(self.config.checkpoints(name), train.keep, self.worker)
        best = checkpoints.require_best(name)
        step = Step(model, train, self.manifest, self.worker)
        checkpoints.load(step, best)
        progress = checkpoints.progress(checkpoints.latest() or best)
        tables = step.recommender.tables
        rows = sum(config.num_embeddings for config in tables.configs)
        parameters = rows * train.tables.dimension + sum(p.numel() for p in step.recommender.network.parameters())
        return (
            step,
            progress,
            {
                "kind": model.kind,
                "inputs": "items, features, times" if len(tables.configs) > 1 else "items",
                "parameters": parameters,
                "best_epoch": progress.best_epoch,
                "seconds": progress.seconds,
                "curve": {"train": progress.train_curve, "validation": progress.validation_curve},
            },
        )

    def _counted(self, model: PopularityConfig | MarkovConfig) -> Scorer:
        if isinstance(model, PopularityConfig):
            return Popularity(self.items, self.worker)
        reader = _reader(self.config, self.manifest, self.items, "train", self.config.train.reader, self.worker, False)
        return Markov(self.items, reader, self.worker)

    def _facts(self, name: str, facts: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
        return {
            "kind": self.config.models[name].kind,
            "label": name,
            "metrics": evaluation.metrics(),
            "intents": evaluation.intents(),
            "attention": evaluation.mean_attention(),
            **{key: value for key, value in facts.items() if key != "kind"},
        }

    def _compared(self, models: dict[str, Any], evaluations: dict[str, Evaluation]) -> dict[str, Any]:
        """Adds to the config's first model how it compares with every other, on the same targets."""
        if not self.worker.first:
            return models
        first, *others = evaluations
        users: dict[object, int] = {}
        index = [users.setdefault(user, len(users)) for user in evaluations[first].users]
        settings = self.config.evaluate
        user_N = torch.tensor(index, dtype=torch.int64).numpy()
        models[first]["versus"] = {
            other: compare(
                evaluations[first].rank,
                evaluations[other].rank,
                settings.metric,
                seed=self.config.train.seed,
                users=user_N,
                resamples=settings.resamples,
            ).model_dump()
            for other in others
        }
        return models


def evaluate_models(config: Config, worker: Worker) -> dict[str, Any]:
    """Evaluate all models of the config on the test split: the parts of results.json that need them."""
    return _Evaluating(config, worker).run()


def recommend_users(config: Config, worker: Worker) -> dict[str, Any]:
    """Write recommendations for every user to the config's folder of them; their number, and by which model."""
    settings = config.recommend or RecommendConfig()
    manifest = load_manifest(config.data_folder)
    items = load_items(config.data_folder, manifest, counts=False)
    name = config.recommended
    assert name is not None
    train, model = config.train_config(name), config.models[name]
    assert isinstance(model, NeuralConfig)
    step = Step(model, train, manifest, worker)
    checkpoints = Checkpoints(config.checkpoints(name), train.keep, worker)
    checkpoints.load(step, checkpoints.require_best(name))
    splits: list[SplitName] = ["test", "rest"]
    readers = [
        Reader(config.data_folder, manifest, items, split, train.reader,
               rank=worker.rank, workers=worker.workers, after_last=True)
        for split in splits
    ]  # fmt: skip
    filter_seen = config.evaluate.filter_seen if settings.filter_seen is None else settings.filter_seen
    names, folder = Names.load(config.data_folder, manifest), config.recommendations_folder
    written = recommend(NeuralScorer(step), readers, worker, settings, filter_seen, names, folder)
    return {"users": sum(gather_objects(written)), "model": name}
