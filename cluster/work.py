"""What runs inside the workers: the verbs train, recommend and evaluate of a config, as all workers call them."""

from __future__ import annotations

import functools
import time
from typing import Any

from cluster.config import Config
from embeddings.workers import Worker
from evaluation.evaluate import validate
from evaluation.evaluation_config import RecommendConfig
from evaluation.evaluator import EvaluationRun, evaluate_models
from evaluation.model import Model
from evaluation.recommend import recommend_users
from evaluation.results import Recommended
from ingest.data.items import ItemTable, load_items
from ingest.data.manifest import load_manifest
from ingest.data.reader import Reader
from trainer.loop import Run, Trainer


def run_stages(arguments: dict[str, Any], worker: Worker) -> dict[str, Any]:
    """Run `arguments["stages"]`, stage -> what it takes, for the config `arguments["config"]`.

    Gives what each stage found, by stage, as the JSON of evaluation/results.py, and under "seconds" what each took.
    """
    config = Config.model_validate(arguments["config"])
    found: dict[str, Any] = {"seconds": {}}
    for stage, given in arguments["stages"].items():
        began = time.perf_counter()
        worker.at(f"{stage} begins", None)
        if stage == "train":
            train_models(config, given, worker)
        elif stage == "recommend":
            found[stage] = _recommend(config, worker).model_dump(mode="json")
        else:
            found[stage] = evaluate_models(_evaluation(config), worker).model_dump(mode="json")
        found["seconds"][stage] = time.perf_counter() - began
    return found


def train_models(config: Config, models: list[str], worker: Worker) -> None:
    """Train `models` of the config, one after the other."""
    items = load_items(config.data_folder, load_manifest(config.data_folder), counts=False)
    for name in models:
        trainer_of(config, name, worker, items, config.model_folder(name)).fit()


def trainer_of(config: Config, name: str, worker: Worker, items: ItemTable, folder: str) -> Trainer:
    """The trainer of model `name`, which leaves checkpoints and TensorBoard in `folder`."""
    manifest, train = load_manifest(config.data_folder), config.train_config(name)
    reader = Reader(config.data_folder, manifest, items, "validation", train.reader,
                    rank=worker.rank, workers=worker.workers, evaluate=True)  # fmt: skip
    run = Run(name, config.neural[name], train, config.data_folder, folder, config.text())
    check = functools.partial(validate, reader=reader, worker=worker, filter_seen=config.evaluate.filter_seen)
    return Trainer(run, worker, check, items)


def _model(config: Config, name: str) -> Model:
    return Model(name, config.models[name], config.train_config(name), config.checkpoints(name))


def _evaluation(config: Config) -> EvaluationRun:
    models = [_model(config, name) for name in config.models]
    train, log = config.train, config.log_folder if config.simulate is not None else None
    return EvaluationRun(
        config.data_folder, config.targets_folder, models, config.evaluate, train.seed, train.metric, log
    )


def _recommend(config: Config, worker: Worker) -> Recommended:
    settings, name = config.recommend or RecommendConfig(), config.recommended
    assert name is not None
    filter_seen = config.evaluate.filter_seen if settings.filter_seen is None else settings.filter_seen
    model = _model(config, name)
    folder = config.recommendations_folder
    return recommend_users(config.data_folder, model, settings, filter_seen, folder, worker, config.data)
