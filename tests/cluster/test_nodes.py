"""Every node of a cluster has to see the storage of a run, and is asked before anything starts on it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.nodes import check_storage, missing, shortage_told
from ingest.errors import InputError
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
    assert missing({"CPU": 2}) is None
    with shortage_told({"CPU": 2, "GPU": 1}, seconds=0.05):
        time.sleep(0.5)
    with shortage_told({"CPU": 2}, seconds=0.05):
        time.sleep(0.2)
    assert capsys.readouterr().out == "the workers need 1 GPUs, the Ray cluster has 0: waiting for more\n"
