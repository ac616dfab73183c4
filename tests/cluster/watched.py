"""What workers run for the test of Ray's metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import distributed

from cluster.config import Config
from cluster.work import train_models
from embeddings.workers import Worker

LIMIT = 240
"""Seconds after which workers end that nobody stops."""


def train(arguments: dict[str, Any], worker: Worker) -> bool:
    """Fail once, then train and stay, because figures go with the worker, until there is a file at `stop`."""
    failed, stop = Path(arguments["failed"]), Path(arguments["stop"])
    if not failed.exists():
        distributed.barrier()  # all have seen that it is not there
        failed.touch()
        raise RuntimeError("a worker that fails")
    train_models(Config.model_validate(arguments["config"]), ["sasrec"], worker)
    deadline = time.monotonic() + LIMIT
    while not stop.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return stop.exists()
