"""Work of a training group that begins and then waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from embeddings.workers import Worker


def wait(arguments: dict[str, Any], worker: Worker) -> None:
    Path(arguments["begun"]).touch()
    time.sleep(120)
