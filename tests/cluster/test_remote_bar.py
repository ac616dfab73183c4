"""What workers have to say to a person comes out where the command was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.mark.ray
def test_lines_of_workers_are_printed_by_the_driver(ray_session: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.remote_bar import drawn, say

    with drawn() as board:
        say(board, "checkpoint step-0000000002 is damaged")
        say(board, "the last line before the end")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["checkpoint step-0000000002 is damaged", "the last line before the end"]
