"""Which failures of workers training goes on from, what is said of them, and how many workers a config has."""

from __future__ import annotations

from typing import Any

import pytest
import ray.exceptions
import torch.distributed
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from cluster.config import ClusterConfig
from cluster.failures import input_error, lacks_room, may_pass, summary
from cluster.pulse import Watchdog
from ingest.errors import InputError
from ingest.settings import build_settings
from tests.cluster.test_pulse import pulses


@pytest.mark.parametrize(
    ("failure", "passes"),
    [
        (WorkerHealthCheckFailedError("gone", ray.exceptions.ActorUnavailableError("gone", None)), True),
        (WorkerHealthCheckTimeoutError("silent"), True),
        (ray.exceptions.ActorDiedError(), True),
        (ConnectionResetError("peer"), True),
        (RuntimeError("gloo: connection closed by peer"), True),
        (torch.distributed.DistNetworkError("the store is gone"), True),
        (WorkerGroupStartupFailedError("a worker died before it began"), True),
        (KeyError("a mistake of the code"), False),
    ],
)
def test_a_lost_worker_is_gone_on_from_and_a_mistake_of_the_code_is_not(failure: Exception, passes: bool) -> None:
    """In training, and while Ray Train forms the group."""
    assert may_pass(WorkerGroupError("failed", {1: failure})) is passes
    assert may_pass(ControllerError(failure)) is passes


def test_no_room_is_waited_out_and_is_no_failure() -> None:
    assert lacks_room(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert not lacks_room(WorkerGroupError("failed", {0: RuntimeError("gone")}))


def test_what_the_user_has_to_mend_is_found_among_the_workers_failures() -> None:
    error = WorkerGroupError("failed", {0: InputError("data.events: nothing there")})
    assert str(input_error(error)) == "data.events: nothing there"
    assert str(input_error(ControllerError(InputError("storage: not there")))) == "storage: not there"


def test_the_worker_that_is_gone_is_named_first_with_where_it_stood_and_why() -> None:
    watchdog = Watchdog(None, 1, 40)
    watchdog.pulses = pulses({}, {"waits": False, "pid": 78})
    gone = WorkerHealthCheckFailedError("failed", ConnectionError("its process died\nkilled"))
    error = WorkerGroupError("failed", {0: RuntimeError("Connection closed by peer"), 1: gone})
    assert summary(error, watchdog).split("; ") == [
        "worker 1 (process 78 on node-7), at: deep epoch 1, step 12, in trainer/step.py:9 (train), for 90 s: killed",
        "worker 0 (process 77 on node-7), at: deep epoch 1, step 12, in trainer/step.py:9 (train), for 90 s, "
        "waiting for others: Connection closed by peer",
    ]
    watchdog.hung = {1: "gives no sign of life for 41 s"}
    assert summary(error, watchdog).split("; ")[0].endswith("for 90 s: gives no sign of life for 41 s")
    assert summary(WorkerGroupError("failed", {2: RuntimeError("no")}), watchdog) == "worker 2, which had not begun: no"


@pytest.mark.parametrize(
    ("workers", "least", "most"), [(3, 3, 3), ({"max": 4}, 1, 4), ({"min": 2, "max": 2}, 2, 2)]
)  # fmt: skip
def test_workers_are_a_number_or_a_range(workers: Any, least: int, most: int) -> None:
    config = build_settings(ClusterConfig, {"workers": workers}, "config.yaml")
    assert (config.workers.min, config.workers.max) == (least, most)


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        (0, r"workers.*greater than or equal to 1"),
        (True, r"workers: takes a number, or {min: 1, max: 4}, got True"),
        ("two", r"workers: takes a number, or {min: 1, max: 4}, got 'two'"),
        ({"min": 3, "max": 2}, r"workers\.max: takes at least min, 3, got 2"),
        ({"least": 1}, r"unknown key 'workers\.least'; allowed: max, min"),
    ],
)
def test_a_range_that_is_none_is_refused_by_its_key(workers: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_settings(ClusterConfig, {"workers": workers}, "config.yaml")
