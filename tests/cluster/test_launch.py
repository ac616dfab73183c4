"""Which failures of workers training goes on from."""

from __future__ import annotations

import pytest
import ray.exceptions
import torch.distributed
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from cluster.launch import input_error, may_pass
from ingest.errors import InputError


@pytest.mark.parametrize(
    ("failure", "passes"),
    [
        (WorkerHealthCheckFailedError("gone", ray.exceptions.ActorUnavailableError("gone", None)), True),
        (WorkerHealthCheckTimeoutError("silent"), True),
        (ray.exceptions.ActorDiedError(), True),
        (ConnectionResetError("peer"), True),
        (RuntimeError("gloo: connection closed by peer"), True),
        (torch.distributed.DistNetworkError("the store is gone"), True),
        (KeyError("a mistake of the code"), False),
    ],
)
def test_a_lost_worker_is_gone_on_from_and_a_mistake_of_the_code_is_not(failure: Exception, passes: bool) -> None:
    assert may_pass(WorkerGroupError("failed", {1: failure})) is passes


def test_what_the_user_has_to_mend_is_found_among_the_workers_failures() -> None:
    error = WorkerGroupError("failed", {0: InputError("data.events: nothing there")})
    assert str(input_error(error)) == "data.events: nothing there"
