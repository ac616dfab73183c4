"""A worker's progress bar on the driver: the worker posts its state to a small Ray actor, a thread here draws it.

What a worker has to say to a person goes the same way. Workers' other output stays in Ray's own log files, so that what
a person sees is that and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import tqdm
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.pulse import Pulse

_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Holds the states of bars, number -> (description, total, done, unit, closed), lines to print, and pulses."""

    def __init__(self) -> None:
        self.bars: dict[int, tuple[str, int, int, str, bool]] = {}
        self.lines: list[str] = []
        self.begin(0)

    def begin(self, attempt: int) -> None:
        """The workers are started anew, for the time `attempt`."""
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

    def post(self, number: int, state: tuple[str, int, int, str, bool]) -> None:
        self.bars[number] = state

    def say(self, line: str) -> None:
        self.lines.append(line)

    def read(self) -> tuple[dict[int, tuple[str, int, int, str, bool]], list[str]]:
        """All bars, closed ones once more and then never again, and the lines since the last call."""
        bars, lines = dict(self.bars), self.lines
        self.bars, self.lines = {number: bar for number, bar in bars.items() if not bar[4]}, []
        return bars, lines


def say(board: Any, line: str) -> None:
    """Print `line` on the driver; nothing waits for it."""
    board.say.remote(line)


class RemoteBar:
    """The worker's end, with the calls of `tqdm.tqdm` that the trainer makes; posts twice a second at most."""

    number = 0

    def __init__(self, board: Any, total: int, desc: str, unit: str) -> None:
        RemoteBar.number += 1
        self.board, self.total, self.description, self.unit = board, total, desc, unit
        self.number, self.done, self.posted = RemoteBar.number, 0, 0.0

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
            self.board.post.remote(self.number, (self.description, self.total, self.done, self.unit, closed))


class Screen:
    """Draws the bars of a board on this process's stderr and prints its lines."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.bars: dict[int, tqdm.tqdm] = {}
        self.lock = threading.Lock()

    def draw(self) -> None:
        """What the board has by now."""
        with self.lock:
            try:
                states, lines = ray.get(self.board.read.remote(), timeout=5)
            except (ray.exceptions.RayError, TimeoutError):
                return
            for line in lines:
                tqdm.tqdm.write(line)
            for number, (description, total, done, unit, closed) in sorted(states.items()):
                if number not in self.bars:
                    self.bars[number] = tqdm.tqdm(total=total, unit=unit, mininterval=_SECONDS)
                bar = self.bars[number]
                bar.set_description(description, refresh=False)
                bar.update(done - bar.n)
                if closed:
                    bar.close()

    def close(self) -> None:
        self.draw()
        for bar in self.bars.values():
            bar.close()


_screens: list[Screen] = []
"""The one of this process, while there is one."""


@contextmanager
def drawn() -> Iterator[Any]:
    """A board whose bars are drawn on this process's stderr while the block runs.

    Within another such block it is the same board: it is a process, which takes a second to start.
    """
    if _screens:
        try:
            yield _screens[0].board
        finally:
            _screens[0].draw()
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    screen, stopped = Screen(board), threading.Event()
    thread = threading.Thread(target=_draw, args=(screen, stopped), name="progress", daemon=True)
    thread.start()
    _screens.append(screen)
    try:
        yield board
    finally:
        _screens.remove(screen)
        stopped.set()
        thread.join()
        screen.close()
        ray.kill(board)


def _draw(screen: Screen, stopped: threading.Event) -> None:
    while not stopped.wait(_SECONDS):
        screen.draw()
