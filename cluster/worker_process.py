"""The process of a Ray Train worker: how it joins the others, and what it runs."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
from contextlib import suppress
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

from cluster.entry import imported, interface_of, quiet
from cluster.pulse import Pulses, terminated
from embeddings.workers import LeavingError, Worker
from ingest.patience import Outage
from ingest.storage import write_text

END_SECONDS = 10
"""For the process that leads a group to end it."""


class GroupTrainer(TorchTrainer):  # type: ignore[misc]
    """Without the process that hands out shards of Ray Data, which nothing here reads and which begins as slowly as a
    worker does."""

    controller: Any = None
    """The process that leads the group, once `fit` has begun."""

    def _create_default_callbacks(self) -> list[Any]:
        return [found for found in super()._create_default_callbacks() if not isinstance(found, DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ctrl-C stays Python's: Ray's own handler waits for the workers, ends with status 0 and never goes."""
        self.controller = controller

    def end(self) -> None:
        """End the workers where `fit` was interrupted: they would go on as long as this process does."""
        if self.controller is not None:
            with suppress(ray.exceptions.RayError):  # it ends itself, and so gives no answer
                ray.get(self.controller.abort.remote(), timeout=END_SECONDS)
            ray.kill(self.controller)


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, for which each worker's process is prepared first."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return GroupBackend


class GroupBackend(_TorchBackend):  # type: ignore[misc]
    """Ray calls it on all workers' main threads, which alone can handle signals."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(prepare_process)
        super().on_start(worker_group, backend_config)


def prepare_process() -> None:
    """SIGTERM asks to leave, where Ray's workers end at once; gloo and NCCL talk where Ray does."""
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def in_worker(work: str, config: dict[str, Any]) -> None:
    """Run `work` in a Ray Train worker; the first one writes what it gives to the file `config["result"]`, which is
    there before. Raises `InputError` where this node does not see it."""
    import ray.train.torch
    import torch

    from cluster.nodes import refuse_unseen
    from cluster.remote_bar import RemoteBar, say
    from cluster.watching import Metrics

    quiet()
    refuse_unseen(config["storage"], config["result"])
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(
            config["threads"] or max(int(ray.get_runtime_context().get_assigned_resources()["CPU"]), 1)
        )
    rank, board = context.get_world_rank(), config["board"]
    pulses = Pulses(board, config["attempt"], rank, spins=device.type == "cuda")
    Outage.tell = functools.partial(say, board)
    worker = Worker(
        rank=rank,
        workers=context.get_world_size(),
        share=context.get_world_size() / config["most"],
        device=device,
        report=ray.train.report,
        bar=functools.partial(RemoteBar, board),
        say=functools.partial(say, board),
        watch=Metrics(config["run"], rank, config["restarts"]),
        at=pulses.at,
        asked=pulses.asked,
    )
    try:
        found = {"value": imported(work)(config["arguments"], worker)}
    except LeavingError as interruption:
        found = {"left": str(interruption)}
    pulses.at("is through", math.inf)
    if worker.first:
        write_text(config["result"], json.dumps(found))
