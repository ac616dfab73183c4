"""A Ray cluster of two nodes on this machine, one of which can be lost as where its machine is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False}
"""Nothing that a worker prints is shown by the driver, so nobody has to follow the logs."""


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A new one; its workers see what is in this process's environment now."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        nodes.add_node(**NODE)
        yield nodes
    finally:
        nodes.shutdown()


def lose_node(nodes: Cluster) -> None:
    """Kill all processes of the one node that is not the head."""
    (lost,) = nodes.worker_nodes
    raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    nodes.remove_node(lost, allow_graceful=False)
