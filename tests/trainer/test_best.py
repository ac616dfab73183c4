"""The name of the best checkpoint, where its file is damaged or of before the newest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embeddings.workers import Worker
from tests.small import Data, make_step, train_config
from tests.trainer.test_checkpoint import (
    OURS,
    empty,
    flip_in_the_middle,
    pickle_in_place,
    resumed,
    truncate,
)
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("damage", [Path.unlink, empty, truncate, flip_in_the_middle, pickle_in_place])
def test_the_name_of_the_best_is_written_anew_from_what_the_checkpoints_say(
    damage: Callable[[Path], Any], data: Data, tmp_path: Path
) -> None:
    """Where it is damaged, and where the run ended between the marker of the best one and it."""
    checkpoints = Checkpoints(str(tmp_path), train_config(keep=3), Worker())
    for number, best_epoch in ((1, 1), (2, 2), (3, 2)):
        progress = Progress(step=number, epoch=number, best=0.1 * best_epoch, best_epoch=best_epoch)
        checkpoints.save(make_step(data.manifest, seed=number), progress, OURS, best=number == 1)
        checkpoints.wait()
    assert checkpoints.best() == "step-0000000001"
    damage(tmp_path / "best.json")
    (line,) = resumed(data, tmp_path)[2]
    assert str(tmp_path / "best.json") in line
    assert "the best one is step-0000000002" in line
    assert checkpoints.best() == "step-0000000002"
    assert resumed(data, tmp_path)[2] == []
    assert not list(tmp_path.rglob("code-has-run"))


def test_where_the_newest_and_best_is_damaged_the_best_is_what_the_one_before_says(data: Data, tmp_path: Path) -> None:
    """Also where the run had ended before it was named: then it is named, and named no more once it is set aside."""
    checkpoints = Checkpoints(str(tmp_path), train_config(keep=3), Worker())
    for number in (1, 2):
        progress = Progress(step=number, epoch=number, best=0.1 * number, best_epoch=number)
        checkpoints.save(make_step(data.manifest, seed=number), progress, OURS, best=number == 1)
        checkpoints.wait()
    truncate(next((tmp_path / "step-0000000002").glob("*.bin")))
    said: list[str] = []
    goes_on = Checkpoints(str(tmp_path), train_config(epochs=9), Worker(say=said.append))
    progress = goes_on.resume(make_step(data.manifest, seed=9), OURS)
    assert ["is damaged and set aside" in line for line in said] == [False, True, False]
    assert (progress.best_epoch, checkpoints.best()) == (1, "step-0000000001")
