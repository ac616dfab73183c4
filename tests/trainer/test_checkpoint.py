"""Checkpoints: written beside the training, complete and sound or not loaded, on any number of workers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.workers import Worker
from evaluation.model import Model
from ingest.errors import DamagedCheckpointError, InputError
from ingest.storage import BLOCK, list_names, open_file
from tests.gated import WAIT, gated
from tests.malice import malicious
from tests.s3 import ObjectStore
from tests.scenarios import TwoWorkers, load
from tests.small import MODEL, PIECE_BYTES, Data, make_step, make_trainer, same, train_config, watched, weights
from tests.trainer.scenarios import flip
from trainer.checked_json import read_checked, write_checked
from trainer.checkpoint import Checkpoints
from trainer.progress import Progress, identity
from trainer.step import Step

pytestmark = pytest.mark.usefixtures("alone")
OURS = identity(MODEL, train_config(), "data")


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


def save(data: Data, folder: Path, number: int, keep: int = 2, best: bool = False) -> Checkpoints:
    checkpoints = Checkpoints(str(folder), train_config(keep=keep), Worker())
    checkpoints.save(make_step(data.manifest, seed=number), Progress(step=number), OURS, best)
    checkpoints.wait()
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
    assert checkpoints.config("step-0000000004") == OURS


def test_tables_are_saved_in_pieces(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1)
    (listed,) = (tmp_path / "step-0000000001").glob("pieces-*.json")
    pieces = [piece for piece in json.loads(listed.read_text())["pieces"] if piece["tensor"].endswith("item.weight")]
    assert [piece["begin"][0] for piece in pieces] == list(range(0, data.manifest.items, 8))
    assert all(piece["length"] == piece["sizes"][0] * 8 * 4 <= PIECE_BYTES for piece in pieces)


def test_no_best_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of model intentrec there; `intentrec train` makes one"):
        Checkpoints(str(tmp_path), train_config(), Worker()).require_best("intentrec")


def resumed(data: Data, folder: Path) -> tuple[Step, Progress, list[str]]:
    """A step and how far it is with the newest checkpoint that is sound; and what was said on the way."""
    said: list[str] = []
    step = make_step(data.manifest, seed=9)
    progress = Checkpoints(str(folder), train_config(), Worker(say=said.append)).resume(step, OURS)
    return step, progress, said


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


def flip_in_the_middle(file: Path) -> None:
    flip(file, file.stat().st_size // 2)


def flip_in_a_piece(file: Path) -> None:
    pieces = json.loads(file.with_suffix(".json").read_text())["pieces"]
    flip(file, pieces[len(pieces) // 2]["offset"])


def pickle_in_place(file: Path) -> None:
    content = malicious(file.with_name("code-has-run"))
    file.write_bytes(content + bytes(max(file.stat().st_size - len(content), 0)))


DAMAGES = {
    "pieces-*.bin": [Path.unlink, empty, truncate, lengthen, flip_in_a_piece, pickle_in_place],
    "pieces-*.json": [Path.unlink, empty, truncate, flip_in_the_middle, pickle_in_place],
    "complete.json": [empty, truncate, flip_in_the_middle, pickle_in_place],
}


@pytest.mark.parametrize(("pattern", "damage"), [(name, call) for name, calls in DAMAGES.items() for call in calls])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_taken(
    pattern: str, damage: Callable[[Path], Any], data: Data, tmp_path: Path
) -> None:
    """And no code is run that lies in its place."""
    save(data, tmp_path, 1)
    save(data, tmp_path, 2)
    (file,) = (tmp_path / "step-0000000002").glob(pattern)
    damage(file)
    step, progress, said = resumed(data, tmp_path)
    assert progress.step == 1
    same(weights(step), weights(make_step(data.manifest, seed=1)))
    (line,) = said
    assert "checkpoint step-0000000002 is damaged and set aside" in line
    assert f"{file}: " in line
    reason = json.loads((tmp_path / "step-0000000002/damaged.json").read_text())["reason"]
    assert str(file) in reason
    assert not (tmp_path / "step-0000000002/complete.json").exists()
    assert not list(tmp_path.rglob("code-has-run"))
    assert resumed(data, tmp_path)[2] == []


def test_what_is_damaged_is_replaced_where_training_comes_to_it_again(data: Data, tmp_path: Path) -> None:
    for number in (1, 2):
        save(data, tmp_path, number)
    flip_in_a_piece(next((tmp_path / "step-0000000002").glob("*.bin")))
    resumed(data, tmp_path)
    save(data, tmp_path, 2)
    assert resumed(data, tmp_path)[1].step == 2
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "step-0000000002").iterdir())
    assert names == ["complete.json", "pieces", "pieces"]


def test_where_all_are_damaged_training_does_not_begin_anew_in_silence(data: Data, tmp_path: Path) -> None:
    for number in (1, 2):
        save(data, tmp_path, number)
    for file in tmp_path.rglob("*.bin"):
        truncate(file)
    for _ in range(2):
        with pytest.raises(InputError, match=r"no checkpoint is left .* 2 are damaged, .*\.bin: has [\d,]+ bytes"):
            resumed(data, tmp_path)


def test_where_the_best_is_damaged_no_other_is_evaluated(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1, best=True)
    save(data, tmp_path, 2)
    flip_in_a_piece(next((tmp_path / "step-0000000001").glob("*.bin")))
    model = Model("intentrec", MODEL, train_config(), str(tmp_path))
    with pytest.raises(InputError, match=r"the best checkpoint of model intentrec is damaged: .*\.bin: bytes .* anew"):
        model.restored(data.manifest, Worker(), data.known)


def test_a_sound_checkpoint_of_another_model_is_the_users_to_mend(data: Data, tmp_path: Path) -> None:
    checkpoints = save(data, tmp_path, 1)
    step = make_step(data.manifest, tables={"dimension": 4})
    with pytest.raises(
        InputError, match=r"step-0000000001: does not fit this model's config: it has .* float32 \["
    ) as told:
        checkpoints.load(step, "step-0000000001")
    assert not isinstance(told.value, DamagedCheckpointError)
    assert checkpoints.latest() == "step-0000000001"


def test_checkpoints_of_the_format_before_are_refused_in_one_sentence(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1, best=True)
    old = {"progress": {"step": 1}, "config": OURS}
    (tmp_path / "step-0000000001/complete.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="has checkpoints of format 1, and this release reads format 2: take another"):
        resumed(data, tmp_path)
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": "step-0000000001"}))
    with pytest.raises(InputError, match="has checkpoints of format 1"):
        Checkpoints(str(tmp_path), train_config(), Worker()).best()


def test_the_last_worker_alone_sees_damage_and_all_take_the_one_before(two_workers: TwoWorkers) -> None:
    first, second = two_workers.result("set aside")
    for found in (first, second):
        assert found["step"] == 1
        same(found["after"], found["before"])
    assert [line for line in first["said"] if "is damaged and set aside" in line and "-1.bin: bytes 0 to" in line]
    assert second["said"] == []


def test_training_goes_on_while_a_slow_storage_takes_the_pieces(prepared: dict[str, str], tmp_path: Path) -> None:
    """The gate opens in the second step after the first checkpoint: a save that waited would never come there."""
    with gated() as gate, watched() as taken:
        trainer = make_trainer(prepared["data"], f"gated://{tmp_path}", epochs=1, checkpoint_steps=3)
        original = trainer.step.train

        def train(*arguments: Any) -> Any:
            if len(taken) == 5:
                assert gate.reached.wait(WAIT)
                assert trainer.checkpoints.latest() is None
                gate.open.set()
            return original(*arguments)

        trainer.step.train = train  # type: ignore[method-assign]
        trainer.fit()
        assert len(taken) > 8
        assert trainer.checkpoints.latest() == f"step-{len(taken):010d}"


def test_what_is_written_is_what_there_was_when_it_was_saved(data: Data, tmp_path: Path) -> None:
    with gated() as gate:
        step, other = make_step(data.manifest), make_step(data.manifest, seed=9)
        checkpoints = Checkpoints(f"gated://{tmp_path}", train_config(), Worker())
        checkpoints.save(step, Progress(step=1), OURS)
        assert gate.reached.wait(WAIT)
        saved, batch = weights(step), data.batch(range(5))
        step.train(batch, 0, step.weights_of(batch).tolist())
        gate.open.set()
        checkpoints.wait()
    checkpoints.load(other, "step-0000000001")
    same(weights(other), saved)
    assert not torch.equal(weights(step)["item"], saved["item"])


def test_a_second_save_waits_for_the_first_and_says_so(data: Data, tmp_path: Path) -> None:
    said: list[str] = []
    with gated() as gate:
        worker, step = Worker(say=said.append), make_step(data.manifest)
        checkpoints = Checkpoints(f"gated://{tmp_path}", train_config(), worker)
        checkpoints.save(step, Progress(step=1), OURS)
        assert gate.reached.wait(WAIT)
        original = checkpoints.wait

        def wait() -> None:
            gate.open.set()
            original()

        checkpoints.wait = wait  # type: ignore[method-assign]
        checkpoints.save(step, Progress(step=2), OURS)
        checkpoints.wait()
    written = [name.split("/")[0] for name in gate.log]
    assert written == sorted(written)
    assert {"step-0000000001", "step-0000000002"} == set(written)
    assert re.fullmatch(r"checkpoint step-0000000002 has waited \d+\.\d s until step-0000000001 was written", said[0])


def test_sums_that_are_a_step_old_say_nothing_of_what_came_after(data: Data, tmp_path: Path) -> None:
    """Pieces that are there do not make the marker written, nor is the save that was wanted then wanted again."""
    checkpoints = Checkpoints(str(tmp_path), train_config(checkpoint_minutes=1e-9), Worker())
    *_, wanted = checkpoints.votes()
    assert checkpoints.wants(wanted)
    checkpoints.save(make_step(data.manifest), Progress(step=1), OURS)
    assert not checkpoints.wants(wanted)
    while checkpoints.saving is not None and not checkpoints.saving.is_whole:
        ended, failed, _ = checkpoints.votes()
        checkpoints.count(ended, failed)
    checkpoints.count(ended, failed)
    assert checkpoints.saving is not None
    checkpoints.wait()
    assert checkpoints.latest() == "step-0000000001"


def test_a_crash_before_the_marker_leaves_the_checkpoint_before(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path, 1)
    dying = Checkpoints(str(tmp_path), train_config(), Worker())
    dying.save(make_step(data.manifest, seed=2), Progress(step=2), OURS, best=True)
    assert dying.saving is not None
    dying.saving.task.join()
    dying.close()
    assert list((tmp_path / "step-0000000002").glob("pieces-*.json"))
    step, progress, said = resumed(data, tmp_path)
    assert (progress.step, said) == (1, [])
    same(weights(step), weights(make_step(data.manifest, seed=1)))
    assert not (tmp_path / "best.json").exists()
    save(data, tmp_path, 3)
    assert not (tmp_path / "step-0000000002").exists()


def test_a_crash_while_a_checkpoint_is_written_over_another_leaves_that_one(data: Data, tmp_path: Path) -> None:
    """The last step of an epoch may have had a checkpoint, when the epoch's own comes."""
    save(data, tmp_path, 1)
    dying = Checkpoints(str(tmp_path), train_config(), Worker())
    dying.save(make_step(data.manifest, seed=2), Progress(step=1), OURS)
    dying.close()
    same(weights(resumed(data, tmp_path)[0]), weights(make_step(data.manifest, seed=1)))


def test_the_first_workers_clock_makes_checkpoints_for_all(two_workers: TwoWorkers) -> None:
    first, second = two_workers.result("by clock")
    assert first["complete"] == second["complete"]
    assert len(first["complete"]) > 1
    same(first["weights"], second["weights"])


def test_a_copy_takes_no_more_memory_than_it_may(data: Data, tmp_path: Path) -> None:
    """Two pieces at the least: then training waits until all but these are written."""
    checkpoints = Checkpoints(str(tmp_path), train_config(checkpoint_gib=1e-9), Worker())
    checkpoints.save(make_step(data.manifest, seed=4), Progress(step=1), OURS)
    assert checkpoints.buffers is not None
    assert checkpoints.buffers.bytes == 2 * BLOCK
    checkpoints.wait()
    same(weights(resumed(data, tmp_path)[0]), weights(make_step(data.manifest, seed=4)))


def test_a_marker_that_points_out_of_the_folder_is_not_followed(data: Data, tmp_path: Path) -> None:
    save(data, tmp_path / "other", 1)
    save(data, tmp_path / "run", 2)
    marker = tmp_path / "run/step-0000000002/complete.json"
    content = read_checked(str(marker))
    write_checked(
        str(marker), content | {"pieces": ["../../other/step-0000000001/" + name for name in content["pieces"]]}
    )
    with pytest.raises(InputError, match=r"'\.\./\.\./other/.*' is no name of pieces"):
        resumed(data, tmp_path / "run")


def test_an_object_store_holds_checkpoints_as_a_folder_does(data: Data, s3: ObjectStore) -> None:
    s3.make_bucket("checkpoints")
    url = "s3://checkpoints/[run]"
    checkpoints = Checkpoints(url, train_config(keep=1), Worker())
    for number in (1, 2, 3):
        checkpoints.save(make_step(data.manifest, seed=number), Progress(step=number), OURS, best=number == 1)
    checkpoints.wait()
    assert (checkpoints.complete(), checkpoints.best()) == (["step-0000000001", "step-0000000003"], "step-0000000001")
    (pieces,) = [name for name in list_names(f"{url}/step-0000000003") if name.endswith(".bin")]
    file = f"{url}/step-0000000003/{pieces}"
    with open_file(file) as read:
        content = read.read()
    with open_file(file, "wb") as written:
        written.write(content[:-1])
    said: list[str] = []
    again, step = Checkpoints(url, train_config(), Worker(say=said.append)), make_step(data.manifest, seed=9)
    assert again.resume(step, OURS).step == 1
    same(weights(step), weights(make_step(data.manifest, seed=1)))
    assert f"{file}: has {len(content) - 1:,} bytes, and {len(content):,} were expected" in said[0]


def test_loading_gives_back_weights_and_progress_bit_for_bit(data: Data, tmp_path: Path) -> None:
    step = make_step(data.manifest)
    batch = data.batch(range(5))
    step.train(batch, 0, step.weights_of(batch).tolist())
    progress = Progress(step=3, best=0.1 + 0.2, train_curve=[(1, 1 / 3)], position={"epoch": 1, "workers": [[]]})
    checkpoints = Checkpoints(str(tmp_path), train_config(), Worker())
    checkpoints.save(step, progress, {})
    checkpoints.wait()
    other = make_step(data.manifest, seed=5)
    checkpoints.load(other, "step-0000000003")
    same(weights(other), weights(step))
    again = checkpoints.progress("step-0000000003")
    assert json.dumps(vars(again)) == json.dumps(vars(progress))
