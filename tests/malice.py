"""Code that runs where it is unpickled: what tests put in the place of data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


class Malice:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def malicious(file: Path) -> bytes:
    """A pickle that makes `file`."""
    return pickle.dumps(Malice(file))
