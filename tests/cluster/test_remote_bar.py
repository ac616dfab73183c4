"""What workers have to say to a person comes out where the command was given."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

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


@pytest.mark.ray
def test_a_late_answer_of_the_board_loses_nothing(
    ray_session: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import remote_bar

    monkeypatch.setattr(remote_bar, "_PATIENCE", 0.1)
    with remote_bar.drawn() as board:
        board.__ray_call__.remote(lambda _: time.sleep(2))
        remote_bar.say(board, "said while the board was busy")
        time.sleep(3)
        monkeypatch.setattr(remote_bar, "_PATIENCE", 60)
        remote_bar.say(board, "the last line before the end")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["said while the board was busy", "the last line before the end"]


@pytest.mark.ray
def test_bars_of_workers_that_were_killed_end_where_others_begin(
    ray_session: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    from cluster.remote_bar import RemoteBar, drawn

    def open_bars(board: Any) -> int:
        found: int = ray.get(board.__ray_call__.remote(lambda board: sum(not bar[4] for bar in board.bars.values())))
        return found

    with drawn() as board:
        RemoteBar(board, 100, "sasrec epoch 1/3", "users").update(40)  # of a worker that is killed
        assert open_bars(board) == 1
        board.begin.remote(1)
        assert open_bars(board) == 0
        bar = RemoteBar(board, 100, "sasrec epoch 1/3 again", "users")
        bar.update(70)
        bar.close()
    drawn_lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert any(re.match(r"sasrec epoch 1/3: +40%\|", line) for line in drawn_lines)
    assert any(re.match(r"sasrec epoch 1/3 again: +70%\|", line) for line in drawn_lines)
