"""Checkpoints: complete or not loaded, on any number of workers, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

from embeddings.workers import Worker
from ingest.errors import InputError
from tests.scenarios import TwoWorkers, load
from tests.small import PIECE_BYTES, Data, make_step, same, weights
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress

pytestmark = pytest.mark.usefixtures("alone")


def test_what_two_workers_saved_one_worker_goes_on_with(data: Data, two_workers: TwoWorkers, shared: Path) -> None:
    saved, after = two_workers.result("save")[0]
    loaded, ours = load(data, shared, Worker(), made_by=2, sharding="table_wise")
    same(loaded, saved)
    same(ours, after, 1e-3)


def test_what_one_worker_saved_two_workers_go_on_with(data: Data, two_workers: TwoWorkers, shared: Path) -> None:
    """Under another sharding, too; the optimizers' state comes along, or the step after would differ."""
    saved, after = load(data, shared, Worker(), made_by=1, sharding="row_wise")
    for loaded, theirs in two_workers.result("load"):
        same(loaded, saved)
        same(theirs, after, 1e-3)


def save(data: Data, folder: Path, number: int, keep: int = 1, best: bool = False) -> Checkpoints:
    checkpoints = Checkpoints(str(folder), keep, Worker())
    checkpoints.save(make_step(data.manifest, seed=number), Progress(step=number), {"key": "value"}, best)
    return checkpoints


def test_a_checkpoint_without_its_marker_is_never_loaded(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1, keep=9)
    checkpoints = save(data, tmp_path, 2, keep=9)
    assert checkpoints.latest() == "step-0000000002"
    (tmp_path / "step-0000000002/complete.json").unlink()
    assert checkpoints.latest() == "step-0000000001"
    shutil.rmtree(tmp_path / "step-0000000001")
    assert checkpoints.latest() is None


def test_older_checkpoints_go_but_for_the_best(data: Data, tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        checkpoints = save(data, tmp_path, number, keep=2, best=number == 1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-000000000{n}" for n in (1, 3, 4)]
    assert checkpoints.best() == "step-0000000001"
    assert checkpoints.config("step-0000000004") == {"key": "value"}


def test_tables_are_saved_in_pieces(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1)
    chunks = FsspecReader(str(tmp_path / "step-0000000001")).read_metadata().state_dict_metadata
    (item,) = [value for name, value in chunks.items() if name.startswith("model.") and ".table_item.weight" in name]
    assert [chunk.offsets[0] for chunk in item.chunks] == list(range(0, data.manifest.items, 8))
    assert all(chunk.sizes[0] * 8 * 4 <= PIECE_BYTES for chunk in item.chunks)


def test_no_best_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of model intentrec there; `intentrec train` makes one"):
        Checkpoints(str(tmp_path), 1, Worker()).require_best("intentrec")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing", "metadata", "no metadata", "smaller"])
def test_a_damaged_or_misfit_checkpoint_is_told_with_its_path(data: Data, tmp_path: Path, damage: str) -> None:
    checkpoints = save(data, tmp_path, 1)
    folder = tmp_path / "step-0000000001"
    piece = next(folder.glob("*.distcp"))
    content = piece.read_bytes()
    if damage == "truncated":
        piece.write_bytes(content[: len(content) // 2])
    elif damage == "garbage":
        piece.write_bytes(bytes(len(content)))
    elif damage == "empty":
        piece.write_bytes(b"")
    elif damage == "missing":
        piece.unlink()
    elif damage == "metadata":
        (folder / ".metadata").write_bytes(b"nonsense")
    elif damage == "no metadata":
        (folder / ".metadata").unlink()
    step = make_step(data.manifest, tables={"dimension": 4 if damage == "smaller" else 8})
    with pytest.raises(InputError, match="step-0000000001: does not fit this model's config, or is damaged"):
        checkpoints.load(step, "step-0000000001")


def test_a_damaged_marker_is_told_with_its_path(data: Data, tmp_path: Path) -> None:
    checkpoints = save(data, tmp_path, 1)
    (tmp_path / "step-0000000001/complete.json").write_text('{"progress": ')
    for read in (checkpoints.progress, checkpoints.config):
        with pytest.raises(InputError, match=r"step-0000000001/complete\.json"):
            read("step-0000000001")


def test_loading_gives_back_weights_and_progress_bit_for_bit(data: Data, tmp_path: Path) -> None:
    step = make_step(data.manifest)
    batch = data.batch(range(5))
    step.train(batch, 0, step.weights_of(batch).tolist())
    progress = Progress(step=3, best=0.1 + 0.2, train_curve=[(1, 1 / 3)], position={"epoch": 1, "workers": [[]]})
    checkpoints = Checkpoints(str(tmp_path), 1, Worker())
    checkpoints.save(step, progress, {})
    other = make_step(data.manifest, seed=5)
    checkpoints.load(other, "step-0000000003")
    same(weights(other), weights(step))
    again = checkpoints.progress("step-0000000003")
    assert json.dumps(vars(again)) == json.dumps(vars(progress))
