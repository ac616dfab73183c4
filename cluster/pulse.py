"""Workers' signs of life: each says every second what it does, and one that hangs is found, named and ended.

A worker is silent that gives no sign, as where its process is stopped or its machine does not answer. All hang where
none has moved for longer than it may: has begun something else, computed, or had an answer of its storage. One that
waits for others in an exchange waits as long as they take, so as long as any is within its time nothing is wrong. The
one to blame is then the one that is in no exchange. It is killed, which ends the others' exchanges, and the group is
started again as after any lost worker. With a silent one the others are killed, too, because its machine may hear of
nothing.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import string
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from cluster.termination import received
from ingest.patience import answers

SECONDS = 1.0
LEAST = 0.1
"""The part of the time between two signs that a process is busy that computes."""
ENDLESS = 10
"""How many times as long as the longest one before it a step takes that will not end."""
EXCHANGES = ("/torch/distributed/", "/torch/autograd/", "/torchrec/distributed/", "/embeddings/workers.py")
"""Where a worker is that waits for others: in a collective, or in the backward pass, whose collectives run in C++."""
STORAGE = ("/ingest/storage.py", "/ingest/arrow_files.py", "/fsspec/", "/pyarrow/")
"""Where a thread is that waits for a storage."""
ROOT = str(Path(__file__).resolve().parents[1])

terminated = threading.Event()
"""Whether this worker's process got SIGTERM."""


@dataclass(frozen=True)
class Pulse:
    """A worker's sign of life."""

    rank: int
    pid: int
    host: str
    node: str
    doing: str
    """What the trainer has last said, such as "deep epoch 1, step 12"."""
    since: float
    """For how many seconds it does that."""
    idle: float
    """For how many of them it has not moved."""
    may_take: float
    """How many of these are no reason to worry, beyond those of a step."""
    line: str
    """Where in our code its thread is."""
    waits: bool
    """Whether it is in an exchange with other workers."""
    age: float = 0.0
    """How many seconds ago it came."""

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.pid} on {self.host})"

    @property
    def stands(self) -> str:
        waiting = ", waiting for others" if self.waits else ""
        return f"{self.doing}, {self.line}, for {self.since + self.age:.0f} s{waiting}"


class Pulses:
    """Sends the pulse of the thread that makes it to the board until the process ends, and hears whether to leave."""

    def __init__(self, board: Any, attempt: int, rank: int, spins: bool) -> None:
        """`spins`: whether a thread is busy that waits for others or a device, as with CUDA."""
        self.board, self.attempt, self.rank = board, attempt, rank
        self.moved, self.activity, self.asks = time.monotonic(), Activity(spins), False
        self.thread, self.node = threading.get_ident(), ray.get_runtime_context().get_node_id()
        self.why, self.wish, self.steps = "", "", Steps()
        self.now: tuple[str, float | None, float] = "starts", math.inf, time.monotonic()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def at(self, doing: str, seconds: float | None) -> None:
        (was, may_take, begun), now = self.now, time.monotonic()
        if may_take is not None:
            self.steps.took(was, now - begun)
        self.now = doing, seconds, now

    def asked(self, goes_on: bool) -> str:
        return self.why or (self.wish if goes_on else "")

    def _beat(self) -> None:
        while True:
            time.sleep(SECONDS)
            try:
                asked, self.wish = ray.get(self.board.pulse.remote(self.attempt, self._pulse()), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):  # the driver's; where it is gone this process ends, too
                asked = ""
            own = f"worker {self.rank} on {socket.gethostname()} got SIGTERM" if terminated.is_set() else ""
            self.why = self.why or own or asked

    def _pulse(self) -> Pulse:
        from embeddings.workers import SLOW  # torch, which the driver does without

        doing, seconds, begun = self.now
        frames = sys._current_frames()
        line, waits = place(frames.get(self.thread))
        asked, self.asks = self.asks, any(map(asks_storage, frames.values()))
        if self.activity.goes_on(waits, in_step=seconds is not None) or asked > self.asks:
            self.moved = time.monotonic()
        if seconds is None:
            seconds = SLOW if self.asks else 0.0
        now = time.monotonic()
        idle = now - (begun if self.steps.endless(doing, now - begun) else max(begun, self.moved))
        host = socket.gethostname()
        return Pulse(self.rank, os.getpid(), host, self.node, doing, now - begun, idle, seconds, line, waits)


class Steps:
    """How long the steps of one kind have taken, those of an epoch or the batches of an evaluation."""

    def __init__(self) -> None:
        self.kind, self.longest = "", 0.0

    def took(self, doing: str, seconds: float) -> None:
        """`doing` is what a worker has said before a step, which ends with the step's number."""
        kind = doing.rstrip(string.digits)
        self.kind, self.longest = kind, max(seconds, self.longest if kind == self.kind else 0.0)

    def endless(self, doing: str, seconds: float) -> bool:
        """Whether one that has taken so many seconds is not of those that end."""
        return doing.rstrip(string.digits) == self.kind and seconds > ENDLESS * self.longest


class Activity:
    """Whether this process computes, or is answered by a storage, from one call of `goes_on` to the next.

    The thread that makes this computes while it is on a processor or waits for one, all others while they are on one.
    """

    def __init__(self, spins: bool) -> None:
        self.spins, self.native = spins, threading.get_native_id()
        self.clock, self.own = time.pthread_getcpuclockid(threading.get_ident()), 0.0
        self.last, self.answers = self._seconds(), answers.count

    def _seconds(self) -> tuple[float, float, float]:
        """Now, and for how long this thread and all others have computed."""
        from trainer.pace import busy_seconds

        with suppress(OSError):  # the thread has ended
            self.own = time.clock_gettime(self.clock)
        return time.monotonic(), busy_seconds(self.native), time.process_time() - self.own

    def goes_on(self, waits: bool, in_step: bool) -> bool:
        """Where threads are busy that wait (`spins`), this one counts for nothing in an exchange (`waits`), and no
        thread in a step, which waits for its exchanges anywhere."""
        last, self.last = self.last, self._seconds()
        seconds, own, others = (ends - began for began, ends in zip(last, self.last, strict=True))
        if self.spins:
            own, others = (0.0 if in_step or waits else own), (0.0 if in_step else others)
        answered, self.answers = answers.count != self.answers, answers.count
        return answered or max(own, others) > LEAST * seconds


def asks_storage(frame: FrameType | None) -> bool:
    """Whether a thread is in a storage's code."""
    return any(part in each.f_code.co_filename for each, _ in traceback.walk_stack(frame) for part in STORAGE)


def place(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is: the innermost line of our code, and whether it waits for other workers there."""
    stack = [(each.f_code.co_filename, line, each.f_code.co_name) for each, line in traceback.walk_stack(frame)]
    waits = bool(stack) and any(part in stack[0][0] for part in EXCHANGES)
    for file, line, function in stack:
        if file.startswith(ROOT) and "/.venv/" not in file:
            return f"in {os.path.relpath(file, ROOT)}:{line} ({function})", waits
    return "outside of our code", waits


def hanging(pulses: Mapping[int, Pulse], seconds: float) -> dict[int, str]:
    """The ranks that hang, and why, where silence and a step that does not move may take `seconds`."""
    silent = {
        rank: f"gives no sign of life for {pulse.age:.0f} s" for rank, pulse in pulses.items() if pulse.age > seconds
    }
    if silent or any(pulse.idle + pulse.age <= seconds + pulse.may_take for pulse in pulses.values()):
        return silent
    to_blame = [rank for rank, pulse in pulses.items() if not pulse.waits] or list(pulses)
    return {rank: f"does not get on for {pulses[rank].idle:.0f} s, and the others wait for it" for rank in to_blame}


class Watchdog:
    """Watches the pulses on `board` from the driver, kills workers that hang, and tells all where it got SIGTERM."""

    def __init__(self, board: Any, attempt: int, seconds: float) -> None:
        self.board, self.attempt, self.seconds = board, attempt, seconds
        self.pulses: dict[int, Pulse] = {}
        """The last ones seen, by rank."""
        self.hung: dict[int, str] = {}
        """Why each was killed, by rank."""
        self.ended = threading.Event()
        self.watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        ray.get(self.board.begin.remote(self.attempt))
        self.watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.watching.join()

    def stood(self, rank: int) -> str:
        """Where the worker `rank` was when it was last heard of."""
        pulse = self.pulses.get(rank)
        return f"{pulse}, at: {pulse.stands}" if pulse else f"worker {rank}, which had not begun"

    def nodes(self) -> Counter[str]:
        """How many workers each node had when they were last heard of, by its id."""
        return Counter(pulse.node for pulse in self.pulses.values())

    def _to_leave(self) -> str:
        """Why all are to leave."""
        if received():
            return "the command got SIGTERM"
        leaving = draining_nodes()
        found = next((pulse for pulse in self.pulses.values() if pulse.node in leaving), None)
        return f"the node of {found} is drained" if found else ""

    def _watch(self) -> None:
        while not self.ended.wait(SECONDS):
            try:
                self.pulses = ray.get(self.board.pulses.remote(), timeout=5)
                if reason := self._to_leave():
                    self.board.ask_to_leave.remote(reason, now=True)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            found = {rank: why for rank, why in hanging(self.pulses, self.seconds).items() if rank not in self.hung}
            self.hung |= found
            for rank, why in found.items():
                print(f"{self.pulses[rank]} hangs: it {why}; it stands at: {self.pulses[rank].stands}", flush=True)
                _kill(self.pulses[rank])
            silent = any(self.pulses[rank].age > self.seconds for rank in found)
            for rank in self.pulses.keys() - self.hung.keys() if found else ():
                print(f"{self.pulses[rank]} stands at: {self.pulses[rank].stands}", flush=True)
                if silent:  # its machine may not hear that it is to be killed, and so break no exchange
                    self.hung[rank] = "is ended with it"
                    _kill(self.pulses[rank])


def draining_nodes() -> set[str]:
    """The ids of nodes that Ray is about to lose, as where a spot machine is taken back."""
    return set(ray._private.state.state.get_draining_nodes())


def _kill(pulse: Pulse) -> None:
    """SIGKILL from a process beside it, which ends a stopped one, too; Ray finds that the worker is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(pulse.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_end).options(scheduling_strategy=there).remote(pulse.pid)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
