"""SIGTERM, as a scheduler sends it before it takes a machine away: what runs is asked to save and to leave.

The command line ends with status 143 then, 128 + SIGTERM as shells have it. A signal that nobody listens for, a second
one, and the end of the grace period interrupt this process as Ctrl-C does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 128 + signal.SIGTERM

_received = threading.Event()
_graces: list[tuple[float, threading.Event]] = []
"""Seconds to end in, and what is set at the end."""


def received() -> bool:
    """Whether this process got SIGTERM."""
    return _received.is_set()


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    """A signal is handled so while the block runs, and after it as before, whatever the block has set. Other threads
    than the main one can not handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def sigterm_handled() -> Iterator[None]:
    """SIGTERM asks to leave while the block runs."""
    if threading.current_thread() is threading.main_thread():
        _received.clear()
    with handled(signal.SIGTERM, _handle):
        yield


@contextmanager
def time_to_leave(grace: float) -> Iterator[None]:
    """The block, which asks whether SIGTERM was `received`, has `grace` seconds to end by itself after it."""
    ended = threading.Event()
    _graces.append((grace, ended))
    try:
        yield
    finally:
        _graces.pop()
        ended.set()


def _handle(*_: object) -> None:
    again = _received.is_set()
    _received.set()
    if again or not _graces:
        raise KeyboardInterrupt
    threading.Thread(target=_wait, args=_graces[-1], name="grace", daemon=True).start()


def _wait(grace: float, ended: threading.Event) -> None:
    print(f"SIGTERM: what runs is saved and ends, within {grace:g} s", flush=True)
    if not ended.wait(grace):
        os.kill(os.getpid(), signal.SIGTERM)
