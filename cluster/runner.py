"""Runs the tasks of `ingest.prepare.pipeline` on a Ray cluster, one a CPU, with a progress bar for each stage.

Ray only places the calls and starts those again whose worker or node was lost: what they read and write lies in files,
so nothing of the log goes through Ray's object store. Why not Ray Data: docs/prepare.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from cluster.bars import Bar
from cluster.config import ClusterConfig
from cluster.failures import input_error
from cluster.launch import QUIET, ray_cluster
from ingest.patience import Outage
from ingest.prepare.tasks import Call, InThisProcess

RETRIES = 5
"""How often a call is made again after its worker was lost or a storage failed."""
THREADS = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "4"}


class OnRay:
    """A `Runner` on the cluster of the config, which is joined once there is work for it.

    All calls in its block share a board for what they have to say, which is a process that takes a second to start.
    """

    def __init__(self, config: ClusterConfig, joined: ExitStack, storage: str | None = None) -> None:
        """`joined`: by whose end the cluster is left; `storage`: where the tasks' files lie."""
        self.config, self.joined, self.storage = config, joined, storage
        self.shown = ExitStack()
        self.board: Any = None

    def __enter__(self) -> OnRay:
        return self

    def __exit__(self, *_: object) -> None:
        self.board = None
        self.shown.close()

    def run(self, calls: Sequence[Call], description: str) -> None:
        """Run `calls`; the error of the first of them that failed is raised, the others are not awaited."""
        if len(calls) == 1:
            InThisProcess().run(calls, description)
            return
        if self.board is None:
            self.joined.enter_context(ray_cluster(self.config, self.storage))
            from cluster.remote_bar import drawn

            self.board = self.shown.enter_context(drawn())
        self._run(calls, description)

    def _run(self, calls: Sequence[Call], description: str) -> None:
        import ray

        runtime_env = {"env_vars": QUIET | THREADS}
        remote = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError], runtime_env=runtime_env)(_call)
        failed: dict[int, BaseException] = {}
        bar = Bar(total=len(calls), desc=description, unit="")
        with bar:
            numbers = {remote.remote(call, self.board): number for number, call in enumerate(calls)}
            waiting: list[Any] = list(numbers)
            while waiting and not failed:
                done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
                for reference in done:
                    try:
                        ray.get(reference)
                    except Exception as error:
                        failed[numbers[reference]] = error
                bar.update(len(done))
            for reference in waiting:
                ray.cancel(reference)
        if failed:
            first = failed[min(failed)]
            raise input_error(first) or first


def _call(call: Call, board: Any) -> None:
    from cluster.remote_bar import say

    Outage.tell = functools.partial(say, board)
    call()
