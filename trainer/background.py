"""A call in a thread of its own, whose error is kept until it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs `call` at once, beside the thread that makes it."""

    def __init__(self, call: Callable[[], None], name: str) -> None:
        self.call = call
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.call()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended, or for so long."""
        self.thread.join(seconds)
