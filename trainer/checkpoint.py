"""Checkpoints: sharded, written by all workers to local or s3:// storage, and complete only with their marker.

    <folder>/step-0000001200/    every worker's shards of tables, dense weights and optimizer state (torch DCP)
                             complete.json    written last: step, epoch, metrics, data position, config
    <folder>/best.json           the name of the best complete checkpoint

A folder without complete.json is never loaded. Loading works on another number of workers and with another sharding:
DCP reads the pieces that each worker's own shards need.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException

from embeddings.workers import Worker
from ingest.errors import InputError
from ingest.storage import join, make_folder, remove, write_text
from trainer.pieces import SaveInPieces
from trainer.progress import MARKER, Markers, Progress
from trainer.step import Step


class Checkpoints(Markers):
    """The checkpoints of one model's run in `folder`."""

    def __init__(self, folder: str, keep: int, worker: Worker) -> None:
        super().__init__(folder)
        self.keep, self.worker = keep, worker

    def save(self, step: Step, progress: Progress, config: dict[str, Any], best: bool = False) -> None:
        """Write a checkpoint; every worker calls it. Older ones are removed but for `keep` and the best."""
        name = f"step-{progress.step:010d}"
        path = join(self.folder, name)
        if self.worker.first:
            remove(path)
            make_folder(path)
        dist.barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer = FsspecWriter(path, sync_files=False)
            state_dict_saver.save(_state(step), storage_writer=writer, planner=SaveInPieces())
        dist.barrier()
        if self.worker.first:
            write_text(join(path, MARKER), json.dumps({"progress": asdict(progress), "config": config}))
            if best:
                write_text(join(self.folder, "best.json"), json.dumps({"checkpoint": name}))
            self._remove_old()

    def _remove_old(self) -> None:
        best = self.best()
        for name in self.complete()[: -self.keep]:
            if name != best:
                remove(join(self.folder, name, MARKER))
                remove(join(self.folder, name))

    def load(self, step: Step, name: str) -> None:
        """Put the weights and the optimizer state of checkpoint `name` into `step`; every worker calls it."""
        path = join(self.folder, name)
        state = _state(step)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state_dict_loader.load(state, storage_reader=FsspecReader(path))
        except (CheckpointException, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{path}: does not fit this model's config, or is damaged: {reason}") from error
        step.parallel.load_state_dict(state["model"])
        step.recommender.tables.collisions.load(state.get("zch"))
        for name_, values in state["dense"].items():
            parameter = step.dense[name_]
            step.optimizer.state[parameter].update({key: value.clone() for key, value in values.items()})


def _state(step: Step) -> dict[str, Any]:
    """What a checkpoint holds, as tensors that DCP writes from and reads into."""
    dense = {}
    for name, parameter in step.dense.items():
        state = step.optimizer.state[parameter]
        dense[name] = {
            "step": state.get("step", torch.zeros(())),
            "exp_avg": state.get("exp_avg", torch.zeros_like(parameter)),
            "exp_avg_sq": state.get("exp_avg_sq", torch.zeros_like(parameter)),
        }
    collisions = step.recommender.tables.collisions
    return ({"zch": collisions.state()} if collisions.modules else {}) | {
        "model": step.parallel.state_dict(),
        "fused": step.parallel.fused_optimizer.state_dict()["state"],
        "dense": dense,
    }
