"""The progress bars of this process, on stderr."""

from __future__ import annotations

import sys
from typing import Any

import tqdm

SECONDS, SECONDS_IN_A_LOG = 0.5, 30.0
"""Between two states of a bar: where a terminal shows them, and where they stay, as in the log of a job."""


class Bar(tqdm.tqdm):  # type: ignore[type-arg]
    """A bar whose description waits for its next state, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=SECONDS if sys.stderr.isatty() else SECONDS_IN_A_LOG, **options)

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        super().set_description(desc, refresh=False)
