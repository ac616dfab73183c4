"""One trial of `intentrec tune`: the training of one model in this process, which reports every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
import ray.tune
import torch

from cluster.config import Config
from cluster.tune_space import Trial, configured, section
from cluster.work import trainer_of
from embeddings.workers import Worker, single_process
from ingest.data.items import load_items
from ingest.data.manifest import load_manifest
from ingest.errors import InputError
from ingest.storage import join


def run_trial(arguments: dict[str, Any], given: dict[str, Any]) -> None:
    """Train `given["trial"]` of `arguments["config"]` for Ray Tune, with its checkpoints below `arguments["folder"]`.

    One that can not be trained reports why; what else it fails of is raised, and Ray Tune begins it again.
    """
    trial, config = Trial.model_validate(given["trial"]), Config.model_validate(arguments["config"])
    torch.set_num_threads(config.cluster.threads or max(int(section(config).cpus_per_trial), 1))
    device = torch.device("cuda", 0) if ray.get_gpu_ids() else torch.device("cpu")
    with single_process(device):
        try:
            train_trial(config, trial, device, join(arguments["folder"], trial.name), ray.tune.report)
        except (InputError, FloatingPointError) as error:
            ray.tune.report({"epoch": 0, "failed": str(error)})


def train_trial(
    config: Config, trial: Trial, device: torch.device, folder: str, report: Callable[[dict[str, Any]], object]
) -> None:
    """Train from the checkpoint in `folder` on, if there is one; `report` takes each epoch, those before it again."""
    config = configured(config, trial, f"trial {trial.name}")
    train = config.train_config(trial.model)
    items = load_items(config.data_folder, load_manifest(config.data_folder), counts=False)

    def tell(epoch: int, value: float) -> None:
        now = trainer.progress
        ended = now.finished and epoch == now.epoch
        report({"epoch": epoch, "value": value, "seconds": now.seconds, "ended": ended})

    worker = Worker(device=device, report=lambda found: tell(found["epoch"], found[train.metric]))
    trainer = trainer_of(config, trial.model, worker, items, folder)
    _, trainer.progress = trainer.checkpoints.resume_point(trainer.identity, train)
    for epoch, value in trainer.progress.validation_curve:
        tell(epoch, value)
    trainer.fit()
