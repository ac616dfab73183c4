"""Checkpoints of the rows that have changed since a whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embeddings.workers import Worker
from ingest.errors import DamagedCheckpointError
from tests.scenarios import TwoWorkers
from tests.small import Data, make_step, same, train_config, weights
from tests.trainer.scenarios import INCREMENTAL, flip, incremental
from trainer.checked_json import read_checked, write_checked
from trainer.checkpoint import Checkpoints
from trainer.models.sasrec import SASRecConfig
from trainer.pieces import Part, stored_pieces
from trainer.progress import Progress
from trainer.step import Step

pytestmark = pytest.mark.usefixtures("alone")
FEW = {"kind": "sampled", "negatives": 1}


@pytest.mark.parametrize("name", INCREMENTAL)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_base_and_what_has_changed_since_are_the_weights_and_the_optimizers_state(
    workers: int, name: str, data: Data, two_workers: TwoWorkers, tmp_path: Path
) -> None:
    """Bit for bit; of the optimizers' state a step more would tell."""
    if workers == 1:
        found = [incremental(data, tmp_path, Worker(), **INCREMENTAL[name])]
    else:
        found = two_workers.result(f"incremental/{name}")
    for each in found:
        assert each["bases"] == [None, "step-0000000001", "step-0000000001"]
        same(each["loaded"], each["saved"])
        same(each["again"], each["after"])
        for saved, loaded in each["mappings"]:
            same(saved, loaded)


@pytest.mark.parametrize("name", ["row_wise", "table_wise"])
def test_two_workers_changes_are_loaded_by_one_under_another_sharding(
    name: str, data: Data, two_workers: TwoWorkers, shared: Path
) -> None:
    (saved, *_) = two_workers.result(f"incremental/{name}")
    setting = INCREMENTAL[name] | {"sharding": "table_wise" if name == "row_wise" else "row_wise"}
    optimizer = setting.get("optimizer", "adagrad")
    tables = {"sharding": {"item": setting["sharding"]}, "zch": {"genres": {"size": 5, "interval": 2}}}
    step = make_step(data.manifest, seed=9, tables=tables | {"optimizer": optimizer})
    folder = shared / f"incremental-2-{INCREMENTAL[name]['sharding']}-{optimizer}"
    Checkpoints(str(folder), train_config(), Worker()).load(step, "step-0000000003")
    same(weights(step), saved["saved"])


def trained(data: Data, folder: Path, keep: int = 2, steps: int = 4, rows: int = 1) -> tuple[Step, Checkpoints]:
    """SASRec, which has the item table alone, after some steps with a checkpoint each."""
    step = make_step(data.manifest, model=SASRecConfig(dropout=0.0), loss=FEW, unknown_share=0)
    checkpoints = Checkpoints(str(folder), train_config(keep=keep), Worker())
    for number in range(steps):
        take(step, data, number, rows)
        checkpoints.save(step, Progress(step=number + 1), {})
        checkpoints.wait()
    return step, checkpoints


def take(step: Step, data: Data, number: int, rows: int = 1) -> None:
    batch = step.asking(data.batch(range(number, number + rows)), 0)
    step.train(batch, number, step.weights_of(batch).tolist())


def bases(checkpoints: Checkpoints) -> dict[int, int | None]:
    """The step of each checkpoint, and that of its base."""
    found = {name: checkpoints.marker(name).get("base") for name in checkpoints.complete()}
    return {int(name[5:]): base and int(base["checkpoint"][5:]) for name, base in found.items()}


def test_rows_that_no_step_has_touched_are_not_written(data: Data, tmp_path: Path) -> None:
    """The rows whose values differ from the base's are those, or some of those, that are written."""
    _, checkpoints = trained(data, tmp_path, steps=2)
    (listed,) = (tmp_path / "step-0000000002").glob("pieces-*.json")
    pieces = [piece for piece in json.loads(listed.read_text())["pieces"] if piece["tensor"].endswith("item.weight")]
    content = listed.with_suffix(".bin").read_bytes()
    numbers = [np.frombuffer(content, np.int64, piece["sizes"][0], piece["offset"]) for piece in pieces]
    written = np.concatenate(numbers)
    assert (np.diff(written) > 0).all()
    assert all((n[0], n[-1] + 1) == (piece["begin"][0], piece["end"]) for n, piece in zip(numbers, pieces, strict=True))
    name = pieces[0]["tensor"]
    values = []
    for checkpoint in ("step-0000000001", "step-0000000002"):
        stored = stored_pieces(str(tmp_path), checkpoint, checkpoints.marker(checkpoint), 1.0)
        whole = stored.whole(name)
        stored.read([Part(name, tuple(whole.shape), (0, 0), whole)])
        values.append(whole)
    changed = (values[0] != values[1]).any(1).nonzero().flatten().tolist()
    assert changed
    assert set(changed) <= set(written.tolist())
    assert len(written) < data.manifest.items / 2


def test_a_checkpoint_is_whole_where_that_is_not_much_more(data: Data, tmp_path: Path) -> None:
    _, checkpoints = trained(data, tmp_path, keep=9, steps=5, rows=4)
    found = list(bases(checkpoints).values())
    assert found[0] is None
    assert None in found[1:]  # more and more rows are touched


def test_what_others_need_stays(data: Data, tmp_path: Path) -> None:
    """The bases of those that are kept, and the last one that does without the newest one's base."""
    _, checkpoints = trained(data, tmp_path, keep=9, steps=9)
    every = bases(checkpoints)
    wholes = [step for step, base in every.items() if base is None]
    assert len(wholes) > 2
    for keep in (1, 2):
        _, checkpoints = trained(data, tmp_path / str(keep), keep=keep, steps=9)
        newest = [*every][-keep:]
        kept = {*newest, *([step for step in every if step < (every[9] or 9)][-1:] if keep > 1 else [])}
        kept |= {base for step in kept if (base := every[step]) is not None}
        assert set(bases(checkpoints)) == kept


def test_a_damaged_base_is_told_and_what_does_without_it_is_taken(data: Data, tmp_path: Path) -> None:
    trained(data, tmp_path, keep=2, steps=9)
    said: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), train_config(), Worker(say=said.append))
    found = bases(checkpoints)
    *_, newest = found
    base = found[newest]
    assert base is not None
    (pieces,) = (tmp_path / f"step-{base:010d}").glob("*.bin")
    listed = json.loads(pieces.with_suffix(".json").read_text())["pieces"]
    flip(pieces, next(piece["offset"] for piece in listed if piece["tensor"].endswith("item.weight")))
    step = make_step(data.manifest, model=SASRecConfig(dropout=0.0), loss=FEW, seed=9)
    with pytest.raises(DamagedCheckpointError, match=pieces.name):
        checkpoints.load(step, f"step-{newest:010d}")
    ours = {"model": {}, "train": {}, "data": ""}
    for name in checkpoints.complete():
        write_checked(f"{tmp_path}/{name}/complete.json", checkpoints.marker(name) | {"config": ours})
    progress = checkpoints.resume(step, ours)
    assert progress.step == max(step for step in found if step < base)
    assert all(str(pieces) in line for line in said)
    assert len(said) == sum(1 for step in found if step >= base)


def test_a_base_that_is_gone_or_lies_elsewhere_is_damage(data: Data, tmp_path: Path) -> None:
    _, checkpoints = trained(data, tmp_path / "run", steps=2)
    step = make_step(data.manifest, model=SASRecConfig(dropout=0.0), loss=FEW, seed=9)
    marker = f"{checkpoints.folder}/step-0000000002/complete.json"
    content = read_checked(marker)
    write_checked(marker, content | {"base": content["base"] | {"checkpoint": "../other/step-0000000001"}})
    with pytest.raises(DamagedCheckpointError, match=r"'\.\./other/step-0000000001' is no name of a checkpoint"):
        checkpoints.load(step, "step-0000000002")
    write_checked(marker, content)
    shutil.rmtree(f"{checkpoints.folder}/step-0000000001")
    with pytest.raises(DamagedCheckpointError, match=r"step-0000000001/pieces-.* is gone|no such file"):
        checkpoints.load(step, "step-0000000002")


def test_after_loading_the_first_checkpoint_is_whole(data: Data, tmp_path: Path) -> None:
    """What has changed since another process's base is not known."""
    _, checkpoints = trained(data, tmp_path, keep=9, steps=2)
    step = make_step(data.manifest, model=SASRecConfig(dropout=0.0), loss=FEW, unknown_share=0)
    checkpoints.load(step, "step-0000000002")
    for number in (2, 3):
        take(step, data, number)
        checkpoints.save(step, Progress(step=number + 1), {})
        checkpoints.wait()
    assert bases(checkpoints) == {1: None, 2: 1, 3: None, 4: 3}
