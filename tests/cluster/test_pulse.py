"""Which workers are taken as hanging, and where a worker says it stands."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from cluster.pulse import Pulse, hanging, place
from trainer.pace import busy_seconds

STEP = Pulse(
    0, 77, "node-7", "id", "deep epoch 1, step 12", 50.0, 0.0, "in trainer/step.py:9 (train)", True, False, 0.5
)


def pulses(*changes: dict) -> dict[int, Pulse]:
    return {rank: replace(STEP, rank=rank, **change) for rank, change in enumerate(changes)}


def test_the_one_that_is_in_no_exchange_is_to_blame() -> None:
    found = hanging(pulses({}, {"waits": False}, {}), 40)
    assert list(found) == [1]
    assert "does not get on for 50 s, and the others wait for it" in found[1]


def test_where_all_wait_for_each_other_all_are_ended() -> None:
    assert list(hanging(pulses({}, {}), 40)) == [0, 1]


def test_nobody_hangs_while_one_is_within_its_time() -> None:
    """A storage that is asked again, a first batch that is compiled, a step that has just begun, a long one."""
    assert not hanging(pulses({}, {"waits": False, "may_take": 600.0}), 40)
    assert not hanging(pulses({}, {"waits": False, "may_take": math.inf}), 40)
    assert not hanging(pulses({}, {"waits": False, "since": 39.0}), 40)
    assert not hanging(pulses({}, {"waits": False, "computes": True}), 40)


def test_a_silent_worker_hangs_whatever_it_may_take() -> None:
    found = hanging(pulses({"may_take": math.inf}, {"may_take": math.inf, "age": 41.0}), 40)
    assert found == {1: "gives no sign of life for 41 s"}


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
