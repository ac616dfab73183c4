"""Every node of a cluster has to see the storage of a run, and is asked before anything starts on it."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

import pytest

import cluster.nodes
from cluster.config import ClusterConfig
from cluster.nodes import Room, check_storage, missing, shortage_told
from ingest.errors import InputError
from tests.cluster.test_pulse import STEP
from tests.s3 import ObjectStore

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.mark.ray
def test_storage_that_all_nodes_see_is_left_as_it_was(ray_session: Cluster, s3: ObjectStore, tmp_path: Path) -> None:
    s3.make_bucket("seen")
    check_storage("s3://seen")
    check_storage(str(tmp_path / "runs"))
    assert not s3.filesystem().ls("seen", refresh=True)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.ray
def test_a_folder_of_the_driver_alone_is_refused(ray_session: Cluster, tmp_path: Path) -> None:
    """A path through a descriptor of this process is a folder that no other process has."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(InputError, match=r"storage /proc/self/fd/\d+/: node .* does not see .* need a folder"):
            check_storage(f"/proc/self/fd/{descriptor}/")
    finally:
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_shortage_is_told_once_while_it_lasts(ray_session: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert missing({"CPU": 1}, 2) is None
    with shortage_told({"CPU": 1, "GPU": 1}, 1, seconds=0.05):
        time.sleep(0.5)
    with shortage_told({"CPU": 1}, 2, seconds=0.05):
        time.sleep(0.2)
    assert capsys.readouterr().out == "the workers need 1 GPUs, the Ray cluster has 0: waiting for more\n"


@pytest.mark.ray
def test_a_worker_that_fits_on_no_node_is_refused(ray_session: Cluster) -> None:
    """The two nodes together have what it takes, and it would be waited for without an end."""
    lack = "2 CPUs on one node each, the nodes of the Ray cluster have that for 0; on a cluster that grows"
    with pytest.raises(InputError, match=f"^cluster.workers: 1 workers need {lack}"):
        Room(ClusterConfig(workers={"min": 1, "max": 1}, cpus_per_worker=2))
    with pytest.raises(InputError, match=r"^cluster.workers: 3 workers need 3 CPUs, the Ray cluster has 2"):
        Room(ClusterConfig(workers={"min": 3, "max": 3}))


@pytest.mark.ray
def test_room_that_other_work_has_is_waited_for_and_told_once(
    ray_session: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(cluster.nodes, "SETTLED", 1.0)
    room = Room(ClusterConfig(workers={"min": 1, "max": 2}))
    others = [ray.remote(num_cpus=1)(Held).remote() for _ in range(2)]
    ray.get([other.node.remote() for other in others])
    while room.free():
        time.sleep(0.1)
    ends = Timer(5, lambda: [ray.kill(other) for other in others])
    ends.start()
    assert room.size() == 2
    ends.join()
    assert capsys.readouterr().out == "waiting for room for 1 workers (1 CPU each)\n"


@pytest.mark.ray
def test_what_ended_workers_held_is_waited_for(ray_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of the group before is still there for some seconds: longer than a lost node is waited for."""
    import ray

    monkeypatch.setattr(cluster.nodes, "SETTLED", 1.0)
    room = Room(ClusterConfig(workers={"min": 1, "max": 2}))
    held = ray.remote(num_cpus=1)(Held).remote()
    node = ray.get(held.node.remote())
    while room.free() == 2:
        time.sleep(0.1)
    assert room.size() == 1
    room.held = Counter([node])
    ends = Timer(4, ray.kill, (held,))
    ends.start()
    assert room.size() == 2
    room.held = Counter(["a node that is gone"])
    assert room.size() == 2
    ends.join()


@pytest.mark.ray
def test_room_is_not_looked_for_before_all_workers_have_begun(
    ray_session: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has not taken yet is none: a start may take longer than room has to last."""
    import ray

    from cluster.remote_bar import Board

    monkeypatch.setattr(cluster.nodes, "SETTLED", 1.0)
    room, board = Room(ClusterConfig(workers={"min": 1, "max": 2})), Board.remote()  # type: ignore[attr-defined]
    ray.get(board.begin.remote(1))
    begun = replace(STEP, rank=0)
    with room.watched(1, board):
        time.sleep(8)
        assert ray.get(board.pulse.remote(1, begun)) == ("", "")
        asked, deadline = "", time.monotonic() + 60
        while not asked and time.monotonic() < deadline:
            time.sleep(0.5)
            _, asked = ray.get(board.pulse.remote(1, begun))
    assert asked == "there is room for 2 workers"
    ray.kill(board)


class Held:
    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())
