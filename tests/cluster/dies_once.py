"""An extension by which the second worker of a run dies in its first validation, once. The one that is first to
write the second checkpoint hangs before it is complete. Once all is trained workers stay until there is a file STOP,
because Ray shows the figures of those alone that are there."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

MARK, WRITES, STOP = "died", "writes", "stop"
"""Files in the run's folder: once the worker has died, once the second checkpoint's pieces are written, and once
workers may end."""
LIMIT = 240
"""Seconds after which what is awaited goes on."""

if "cluster.work" in sys.modules:  # in a worker
    import cluster.work
    from trainer.checkpoint import Checkpoints

    validate, train_models, finish = cluster.work.validate, cluster.work.train_models, Checkpoints._finish

    def wait_for(file: Path) -> None:
        deadline = time.monotonic() + LIMIT
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def second_waits(self: Checkpoints, saving: Any) -> None:
        run = Path(self.folder).parents[2]
        if self.complete() and not (run / WRITES).exists():
            (run / WRITES).touch()
            wait_for(run / STOP)
        finish(self, saving)

    def dying(*arguments: Any, reader: Any, worker: Any, **options: Any) -> Any:
        mark = Path(reader.source.url).with_name(MARK)
        if worker.rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return validate(*arguments, reader=reader, worker=worker, **options)

    def staying(config: Any, models: list[str], worker: Any) -> None:
        train_models(config, models, worker)
        worker.at("all is trained", math.inf)
        wait_for(Path(config.folder, STOP))

    cluster.work.validate, cluster.work.train_models = dying, staying
    Checkpoints._finish = second_waits  # type: ignore[method-assign]
