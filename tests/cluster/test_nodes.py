"""Every node of a cluster has to see the storage of a run, and is asked before anything starts on it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.nodes import check_storage
from ingest.errors import InputError
from tests.s3 import ObjectStore


@pytest.mark.ray
def test_storage_that_all_nodes_see_is_left_as_it_was(ray_session: None, s3: ObjectStore, tmp_path: Path) -> None:
    s3.make_bucket("seen")
    check_storage("s3://seen")
    check_storage(str(tmp_path / "runs"))
    assert not s3.filesystem().ls("seen", refresh=True)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.ray
def test_a_folder_of_the_driver_alone_is_refused(ray_session: None, tmp_path: Path) -> None:
    """A path through a descriptor of this process is a folder that no other process has."""
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(InputError, match=r"storage /proc/self/fd/\d+/: node .* does not see .* need a folder"):
            check_storage(f"/proc/self/fd/{descriptor}/")
    finally:
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []
