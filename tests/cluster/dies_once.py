"""An extension by which the second worker of a run dies in its first validation, once. Once all is trained workers stay
until there is a file STOP in the run's folder, because Ray shows the figures of those alone that are there."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

MARK, STOP = "died", "stop"
"""Files in the run's folder: once the worker has died, and once workers may end."""
LIMIT = 240
"""Seconds after which workers end that nobody stops."""

if "cluster.work" in sys.modules:  # in a worker
    import cluster.work

    validate, train_models = cluster.work.validate, cluster.work.train_models

    def dying(*arguments: Any, reader: Any, worker: Any, **options: Any) -> Any:
        mark = Path(reader.source.url).with_name(MARK)
        if worker.rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return validate(*arguments, reader=reader, worker=worker, **options)

    def staying(config: Any, models: list[str], worker: Any) -> None:
        train_models(config, models, worker)
        worker.at("all is trained", math.inf)
        stop, deadline = Path(config.folder, STOP), time.monotonic() + LIMIT
        while not stop.exists() and time.monotonic() < deadline:
            time.sleep(0.2)

    cluster.work.validate, cluster.work.train_models = dying, staying
