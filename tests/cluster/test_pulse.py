"""Which workers are taken as hanging, and where a worker says it stands."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cluster.pulse import Activity, Pulse, Steps, asks_storage, hanging, place
from ingest.patience import patiently
from ingest.storage import read_text
from trainer.pace import busy_seconds

STEP = Pulse(0, 77, "node-7", "id", "deep epoch 1, step 12", 90.0, 50.0, 0.0, "in trainer/step.py:9 (train)", True, 0.5)


def pulses(*changes: dict) -> dict[int, Pulse]:
    return {rank: replace(STEP, rank=rank, **change) for rank, change in enumerate(changes)}


def test_the_one_that_is_in_no_exchange_is_to_blame() -> None:
    found = hanging(pulses({}, {"waits": False}, {}), 40)
    assert list(found) == [1]
    assert "does not get on for 50 s, and the others wait for it" in found[1]


def test_where_all_wait_for_each_other_all_are_ended() -> None:
    assert list(hanging(pulses({}, {}), 40)) == [0, 1]


def test_nobody_hangs_while_one_is_within_its_time() -> None:
    """A storage that is asked again, a first batch that is compiled, one that has just moved."""
    assert not hanging(pulses({}, {"waits": False, "may_take": 600.0}), 40)
    assert not hanging(pulses({}, {"waits": False, "may_take": math.inf}), 40)
    assert not hanging(pulses({}, {"waits": False, "idle": 39.0}), 40)


def test_a_silent_worker_hangs_whatever_it_may_take() -> None:
    found = hanging(pulses({"may_take": math.inf}, {"may_take": math.inf, "age": 41.0}), 40)
    assert found == {1: "gives no sign of life for 41 s"}


def test_a_step_is_endless_that_takes_far_longer_than_those_before_it_of_its_kind() -> None:
    steps = Steps()
    for number, seconds in ((1, 0.2), (2, 3.0), (3, 0.1)):
        steps.took(f"deep epoch 1, step {number}", seconds)
    assert steps.endless("deep epoch 1, step 40", 31)
    assert not steps.endless("deep epoch 1, step 40", 29)
    assert not steps.endless("deep epoch 2, step 1", 1000), "nothing is known of it"
    assert not steps.endless("deep epoch 1, step 40 is read", 1000)
    steps.took("deep epoch 2, step 1", 0.1)
    assert steps.endless("deep epoch 2, step 2", 1.5)


def test_a_thread_stands_at_our_innermost_line_and_in_an_exchange_or_not() -> None:
    """One thread is held in a file that is called as torch's exchanges are, another one in a library."""
    held = threading.Lock()
    with held:
        exchanging: dict[str, Callable[[], None]] = {}
        exec(
            compile("def wait(): held.acquire()", "/lib/torch/distributed/c10d.py", "exec"), {"held": held}, exchanging
        )
        first = threading.Thread(target=_calls, args=(exchanging["wait"],))
        second = threading.Thread(target=threading.Thread.join, args=(first,))
        first.start()
        second.start()
        time.sleep(0.1)
        frames = sys._current_frames()
        line, waits = place(frames[first.ident or 0])
        assert line.startswith("in tests/cluster/test_pulse.py:")
        assert line.endswith("(_calls)")
        assert waits
        assert place(frames[second.ident or 0]) == ("outside of our code", False)
        assert place(None) == ("outside of our code", False)
    first.join()
    second.join()


def _calls(function: Callable[[], None]) -> None:
    function()


def test_a_thread_that_computes_is_busy_and_one_that_sleeps_is_not() -> None:
    thread, before = threading.get_native_id(), busy_seconds(threading.get_native_id())
    time.sleep(0.3)
    slept = busy_seconds(thread)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    assert slept - before < 0.1
    assert busy_seconds(thread) - slept > 0.2
    assert busy_seconds(2**30) == 0


def test_a_process_goes_on_that_computes_in_any_thread_or_is_answered() -> None:
    activity, stop = Activity(spins=False), threading.Event()
    assert not _goes_on(activity)
    computing = threading.Thread(target=_computes, args=(stop,))
    computing.start()
    try:
        assert _goes_on(activity)
        spins = Activity(spins=True)
        assert not _goes_on(spins, in_step=True), "what is busy there may wait for a device"
        assert _goes_on(spins, waits=True), "another thread does not wait for others"
    finally:
        stop.set()
        computing.join()
    _goes_on(activity)
    assert not _goes_on(activity)
    assert patiently(lambda: 1, "file") == 1
    assert _goes_on(activity)
    assert not _goes_on(activity)


def test_a_process_whose_training_thread_has_ended_gives_signs_still() -> None:
    """As where the first worker writes what has been found, and the others are through."""
    made: list[Activity] = []
    thread = threading.Thread(target=lambda: made.append(Activity(spins=False)))
    thread.start()
    thread.join()
    (activity,) = made
    activity.goes_on(waits=False, in_step=False)
    assert not _goes_on(activity)


def test_a_thread_that_is_busy_in_an_exchange_does_not_go_on_where_waiting_is_busy() -> None:
    for spins, waits, goes_on in ((True, True, False), (True, False, True), (False, True, True)):
        activity, until = Activity(spins), time.monotonic() + 0.3
        while time.monotonic() < until:
            pass
        assert activity.goes_on(waits, in_step=False) == goes_on


def _goes_on(activity: Activity, waits: bool = False, in_step: bool = False) -> bool:
    """In the next moment."""
    time.sleep(0.3)
    return activity.goes_on(waits, in_step)


def _computes(stop: threading.Event) -> None:
    while not stop.is_set():
        pass


def test_a_thread_that_waits_for_a_storage_is_told_from_one_that_waits_for_another_thread(tmp_path: Path) -> None:
    """A pipe is a file that does not answer before somebody writes."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reads = threading.Thread(target=_reads, args=(pipe,))
    joins = threading.Thread(target=threading.Thread.join, args=(reads,))
    reads.start()
    joins.start()
    time.sleep(0.3)
    frames = sys._current_frames()
    asks = [asks_storage(frames[thread.ident or 0]) for thread in (reads, joins)]
    pipe.write_text("answer")
    reads.join()
    joins.join()
    assert asks == [True, False]


def _reads(pipe: Path) -> None:
    with suppress(OSError):  # it can not be gone back in, as is found when it is open
        read_text(str(pipe))
