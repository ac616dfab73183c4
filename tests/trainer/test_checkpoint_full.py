"""Checkpoints on a storage that is full or away: training goes on, and the last sound one stays."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from embeddings.workers import Worker
from ingest import patience
from ingest.errors import InputError, StorageError
from tests.disk import SmallDisk
from tests.gated import gated
from tests.scenarios import TwoWorkers
from tests.small import Data, make_step, make_trainer, same, train_config, watched, weights
from tests.trainer.test_checkpoint import OURS, resumed, save
from trainer import pieces
from trainer.checkpoint import Checkpoints
from trainer.loop import Validation
from trainer.progress import Progress

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"pieces-.*\.bin: can not be written: .*No space"),
        (ConnectionResetError("reset by peer"), r"step-\d+: can not be written: reset by peer"),
    ],
)
def test_the_last_checkpoint_that_can_not_be_written_is_one_error(
    error: OSError, told: str, prepared: dict[str, str], tmp_path: Path
) -> None:
    with gated(error), pytest.raises(StorageError, match=told):
        make_trainer(prepared["one group"], f"gated://{tmp_path}").fit()
    assert not list(tmp_path.rglob("complete.json"))


def test_a_storage_that_refuses_a_checkpoint_ends_the_training(prepared: dict[str, str], tmp_path: Path) -> None:
    with (
        gated(PermissionError("read-only")),
        watched() as taken,
        pytest.raises(InputError, match=r"pieces-.*\.bin: may not be written: read-only"),
    ):
        make_trainer(prepared["data"], f"gated://{tmp_path}", checkpoint_steps=1).fit()
    assert len(taken) < 5


def test_the_best_checkpoint_that_was_not_written_leaves_its_place_to_the_next(
    prepared: dict[str, str], tmp_path: Path
) -> None:
    """The first epoch's is lost: what is best afterwards was written."""
    said: list[str] = []
    with gated(OSError(errno.ENOSPC, "No space left on device")) as gate:
        gate.times = 1
        gate.open.set()
        trainer = make_trainer(prepared["data"], f"gated://{tmp_path}", Worker(say=said.append), epochs=2)
        trainer.validate = lambda step: Validation({"MRR": 1 / (1 + trainer.progress.epoch)}, {}, {})  # ever worse
        progress = trainer.fit()
    assert (progress.best, progress.best_epoch, progress.since_best) == (0.5, 2, 0)
    assert trainer.checkpoints.best() == trainer.checkpoints.latest()
    assert trainer.checkpoints.progress(str(trainer.checkpoints.best())).best == 0.5
    assert [line for line in said if "is left out, training goes on: " in line]


def test_what_can_not_be_removed_leaves_a_checkpoint_complete(
    prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process reads an old one on NFS."""

    def refused(self: Checkpoints, newest: str) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Checkpoints, "_remove_old", refused)
    said: list[str] = []
    trainer = make_trainer(prepared["one group"], str(tmp_path), Worker(say=said.append), epochs=2, keep=1)
    trainer.validate = lambda step: Validation({"MRR": 1 / (1 + trainer.progress.epoch)}, {}, {})  # ever worse
    progress = trainer.fit()
    assert (progress.best, progress.best_epoch, progress.finished) == (1.0, 1, True)
    assert trainer.checkpoints.best() == trainer.checkpoints.complete()[0] != trainer.checkpoints.latest()
    assert any("can not be removed: [Errno" in line for line in said)
    assert not any("left out" in line for line in said)


def test_a_write_that_fails_keeps_no_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def failing(url: str) -> Iterator[Callable[[object], None]]:
        def append(content: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        yield append

    monkeypatch.setattr(pieces, "open_blocks", failing)
    buffers = pieces.Buffers(0, pinned=False)
    part = pieces.Part("a", (4, 2), (0, 0), torch.ones(4, 2))
    for _ in range(4):  # of two there are
        with pytest.raises(OSError, match="Input/output"):
            pieces.write_pieces(str(tmp_path / "a"), pieces.copies([part], buffers), buffers)
        assert buffers.free.qsize() == buffers.made


def test_one_workers_full_disk_is_gone_on_from_by_all(two_workers: TwoWorkers, data: Data) -> None:
    first, second = two_workers.result("full")
    for found in (first, second):
        complete, steps, trained = found[2]
        assert steps > 4
        assert complete == [f"step-{number:010d}" for number in range(3, steps + 1)]
        same(found[10_000][2], trained)
        assert found[10_000][0] == []
        assert re.search(r"StorageError .*pieces-.*-1\.bin: can not be written: .*No space left", found["error"])
    said, others = ([line for line in found["said"] if line.startswith("checkpoint")] for found in (first, second))
    assert others == []
    assert re.match(r"checkpoint step-0000000001 is left out, training goes on: .*No space left", said[0])


def test_a_disk_that_fills_up_is_waited_for(data: Data, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit in time is left out, and the checkpoint before stays; what does is whole."""
    folder, step = small_disk.folder / "run", make_step(data.manifest, seed=2)
    save(data, folder, 1)
    checkpoints, progress = Checkpoints(str(folder), train_config(), Worker()), Progress(step=2)
    with small_disk.full():
        monkeypatch.setattr(patience, "RETRY_SECONDS", 0.5)
        checkpoints.save(step, progress, OURS)
        checkpoints.wait()
        assert checkpoints.latest() == "step-0000000001"
        same(weights(resumed(data, folder)[0]), weights(make_step(data.manifest, seed=1)))
        monkeypatch.setattr(patience, "RETRY_SECONDS", 60.0)
        threading.Timer(1.0, small_disk.make_room).start()
        checkpoints.save(step, Progress(step=3), OURS)
        checkpoints.wait()
        small_disk.fill()
    step, progress, said = resumed(data, folder)
    assert (progress.step, said) == (3, [])
    same(weights(step), weights(make_step(data.manifest, seed=2)))
    assert not list(folder.rglob("*.partial"))
