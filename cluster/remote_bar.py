"""A worker's progress bar on the driver: the worker posts its state to a small Ray actor, a thread here draws it.

What a worker has to say to a person goes the same way. Workers' other output stays in Ray's own log files, so that what
a person sees is that and nothing else.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import tqdm
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.bars import Bar
from cluster.pulse import Pulse

_SECONDS = 0.5
_PATIENCE = 5.0
"""Seconds that the driver waits for the board's answer before it looks whether the block has ended."""
State = tuple[str, int, int, str, bool]
"""Of a bar: description, total, done, unit, closed."""


@ray.remote(num_cpus=0)
class Board:
    """Holds the states of bars, lines to print, and pulses."""

    def __init__(self) -> None:
        self.bars: dict[str, State] = {}
        self.lines: list[str] = []
        self.begin(0)

    def begin(self, attempt: int) -> None:
        """The workers are started anew, for the time `attempt`: bars that their last ones left open are closed."""
        self.bars = {name: (*bar[:4], True) for name, bar in self.bars.items()}
        self.attempt, self.why, self.wish = attempt, "", ""
        self.last: dict[int, tuple[Pulse, float]] = {}

    def ask_to_leave(self, why: str, now: bool) -> None:
        """All workers are asked to leave, `now` or where they can go on later."""
        if now:
            self.why = why
        else:
            self.wish = why

    def pulse(self, attempt: int, pulse: Pulse) -> tuple[str, str]:
        """Take a worker's sign of life; gives why it is to leave now, and where it can go on later."""
        if attempt == self.attempt:
            self.last[pulse.rank] = pulse, time.monotonic()
        return self.why, self.wish

    def pulses(self) -> dict[int, Pulse]:
        """The last of every worker, by rank."""
        now = time.monotonic()
        return {rank: replace(pulse, age=now - came) for rank, (pulse, came) in self.last.items()}

    def post(self, name: str, state: State) -> None:
        self.bars[name] = state

    def say(self, line: str) -> None:
        self.lines.append(line)

    def read(self) -> tuple[dict[str, State], list[str]]:
        """All bars, closed ones once more and then never again, and the lines since the last call."""
        bars, lines = dict(self.bars), self.lines
        self.bars, self.lines = {name: bar for name, bar in bars.items() if not bar[4]}, []
        return bars, lines


def say(board: Any, line: str) -> None:
    """Print `line` on the driver; nothing waits for it."""
    board.say.remote(line)


class RemoteBar:
    """The worker's end, with the calls of `tqdm.tqdm` that the trainer makes; posts twice a second at most."""

    def __init__(self, board: Any, total: int, desc: str, unit: str) -> None:
        self.board, self.total, self.description, self.unit = board, total, desc, unit
        self.name, self.done, self.posted = uuid.uuid4().hex, 0, 0.0

    def update(self, done: int) -> None:
        self.done += done
        self._post()

    def set_description(self, description: str) -> None:
        self.description = description
        self._post()

    def close(self) -> None:
        self._post(closed=True)

    def _post(self, closed: bool = False) -> None:
        if closed or time.monotonic() - self.posted >= _SECONDS:
            self.posted = time.monotonic()
            self.board.post.remote(self.name, (self.description, self.total, self.done, self.unit, closed))


@contextmanager
def drawn() -> Iterator[Any]:
    """A board whose bars are drawn on this process's stderr while the block runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stopped = threading.Event()
    thread = threading.Thread(target=_draw, args=(board, stopped), name="progress", daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stopped.set()
        thread.join()
        ray.kill(board)


def _draw(board: Any, stopped: threading.Event) -> None:
    bars: dict[str, Bar] = {}
    reading, ends, last = None, False, False
    while not last:
        ended = stopped.wait(_SECONDS)
        if reading is None:
            reading, ends = board.read.remote(), ended
        try:
            states, lines = ray.get(reading, timeout=_PATIENCE)
        except ray.exceptions.GetTimeoutError:  # the answer is still to come, and has what the board no longer holds
            last = ended
            continue
        except ray.exceptions.RayError:
            reading, last = None, ended
            continue
        reading, last = None, ends
        for line in lines:
            tqdm.tqdm.write(line)
        for name, (description, total, done, unit, closed) in states.items():
            if name not in bars:  # a bar of nothing is False
                bars[name] = Bar(total=total, unit=unit)
            bar = bars[name]
            bar.set_description(description)
            bar.update(done - bar.n)
            if closed:
                bars.pop(name).close()
    for bar in bars.values():
        bar.close()
