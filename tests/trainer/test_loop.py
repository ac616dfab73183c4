"""Training runs: even steps, exact resume, refusals, and what TensorBoard is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embeddings.workers import LeavingError, Worker
from ingest.errors import InputError
from tests.scenarios import TwoWorkers, train
from tests.small import Data, Stopped, inputs_of, make_trainer, one_process, same, watched, weights
from trainer.loop import Trainer, Validation
from trainer.models.intentrec import IntentRecConfig
from trainer.progress import Markers, Progress
from trainer.state import State
from trainer.step import Prepared, Step

pytestmark = pytest.mark.usefixtures("alone")
DROPOUT = IntentRecConfig(heads=2, dropout=0.3, window="8h")
EXACT: dict[str, Any] = {"model": DROPOUT, "epochs": 3, "checkpoint_steps": 3, "log_steps": 2, "patience": 9}


def facts(progress: Progress) -> dict[str, Any]:
    """All of a run's progress but the time and memory that it took, lists for tuples."""
    assert 0 < progress.steps_seconds < progress.seconds
    content = vars(progress) | {"seconds": 0, "steps_seconds": 0, "memory_gib": 0}
    return {k: [list(v) for v in value] if k.endswith("curve") else value for k, value in content.items()}


@pytest.fixture(scope="module")
def undisturbed(prepared: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, as the resumed ones are to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with one_process():
        trainer = make_trainer(prepared["data"], folder, **EXACT)
        with watched() as taken:
            progress = trainer.fit()
        state = State(trainer.step).dense
        return {"weights": weights(trainer.step), "facts": facts(progress), "taken": inputs_of(taken), "dense": state,
                "folder": folder, "steps": len(taken)}  # fmt: skip


@pytest.mark.parametrize("stops", [[4], [10], [2, 1, 5, 20], [14], [26]])
def test_resumed_is_uninterrupted_bit_for_bit(
    stops: list[int], undisturbed: dict[str, Any], prepared: dict[str, str], tmp_path: Path
) -> None:
    """Under dropout and shuffle, killed in the middle of epochs: weights, moments, metrics, curves and best epoch."""
    assert undisturbed["steps"] > 35
    for stop in stops:
        with watched(stop_after=stop), pytest.raises(Stopped):
            make_trainer(prepared["data"], tmp_path, **EXACT).fit()
    trainer = make_trainer(prepared["data"], tmp_path, **EXACT)
    progress = trainer.fit()
    same(weights(trainer.step), undisturbed["weights"])
    assert facts(progress) == undisturbed["facts"]
    for name, state in State(trainer.step).dense.items():
        same(state, undisturbed["dense"][name])


@pytest.mark.parametrize("moments", [[0, 4, 1, 5], ["validation", "validation"]])
def test_asked_to_leave_no_step_is_taken_again(
    moments: list[int | str], undisturbed: dict[str, Any], prepared: dict[str, str], tmp_path: Path
) -> None:
    """In the first step, in the middle of epochs, in validation: saved at that step, and bit for bit as without.

    The step that is prepared while another one is computed is not taken, and comes again.
    """
    steps = 0
    for moment in moments:
        worker = Worker(asked=_at(moment))
        with watched() as taken, pytest.raises(LeavingError, match="SIGTERM"):
            make_trainer(prepared["data"], tmp_path, worker, **EXACT).fit()
        steps += len(taken)
        assert moment == "validation" or len(taken) == max(int(moment) - 1, 0)
        latest = Markers(str(tmp_path / "checkpoints")).latest()
        assert latest == (f"step-{steps:010d}" if steps else None)
    trainer = make_trainer(prepared["data"], tmp_path, **EXACT)
    with watched() as taken:
        progress = trainer.fit()
    assert steps + len(taken) == undisturbed["steps"]
    same(weights(trainer.step), undisturbed["weights"])
    assert facts(progress) == undisturbed["facts"]


def _at(moment: int | str) -> Callable[[bool], str]:
    """Asks to leave after so many batches, or at the first one that is of a validation."""
    calls = itertools.count()
    return lambda goes_on: "SIGTERM" if next(calls) == moment or (moment == "validation" and not goes_on) else ""


def test_every_epoch_is_the_whole_data_and_none_repeats_the_order(data: Data, undisturbed: dict[str, Any]) -> None:
    whole = inputs_of([batch for batch, _ in data.reader().epoch(0)])
    assert undisturbed["taken"] == sorted(3 * whole)
    orders = [[batch.item_T.tolist() for batch, _ in data.reader().epoch(epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]


def test_a_finished_run_is_not_trained_again(undisturbed: dict[str, Any], prepared: dict[str, str]) -> None:
    with watched() as taken:
        progress = make_trainer(prepared["data"], undisturbed["folder"], **EXACT).fit()
    assert not taken
    assert facts(progress) == undisturbed["facts"]


@pytest.mark.parametrize("name", ["data", "one group"])
def test_workers_with_uneven_or_no_data_end_together_and_the_second_epoch_has_data(
    name: str, two_workers: TwoWorkers, prepared: dict[str, str], tmp_path: Path
) -> None:
    first, second = two_workers.result("train" if name == "data" else "train/one has no data")
    one = train(Data(prepared[name]), tmp_path, Worker())
    if name == "data":
        assert first["batches"] != second["batches"]
    else:
        assert [0, 0] in (first["batches"], second["batches"])
    longest = sum(max(pair) for pair in zip(first["batches"], second["batches"], strict=True))
    assert first["steps"] == second["steps"] == longest
    assert facts(first["progress"]) == facts(second["progress"])
    assert len(first["progress"].validation_curve) == 2
    targets = sum(len(batch.target_Q) for batch, _ in Data(prepared[name]).reader().epoch(0))
    assert first["progress"].targets == one["progress"].targets == 2 * targets
    assert sorted(first["inputs"] + second["inputs"]) == one["inputs"]
    same(first["weights"], second["weights"])


def test_workers_without_data_do_not_change_the_training(
    two_workers: TwoWorkers, prepared: dict[str, str], tmp_path: Path
) -> None:
    """One row group: the worker that has it sees the batches that one worker alone would."""
    result = two_workers.result("train/one has no data")[0]
    one = train(Data(prepared["one group"]), tmp_path, Worker())
    assert result["steps"] == one["steps"]
    same(result["weights"], one["weights"], 2e-2)


def test_ids_that_travel_before_their_step_change_nothing(two_workers: TwoWorkers) -> None:
    """Bit for bit, on two workers."""
    for ahead, one_by_one in zip(*map(two_workers.result, ("train", "train/one by one")), strict=True):
        same(ahead["weights"], one_by_one["weights"])
        assert facts(ahead["progress"]) == facts(one_by_one["progress"])


def test_one_worker_goes_on_where_two_were_killed_and_every_row_comes_once(
    data: Data, two_workers: TwoWorkers, shared: Path, prepared: dict[str, str]
) -> None:
    before = two_workers.result("interrupt")
    trainer = make_trainer(prepared["data"], shared / "interrupted", epochs=1, checkpoint_steps=2)
    with watched() as taken:
        assert trainer.fit().epoch == 1
    whole = inputs_of([batch for batch, _ in data.reader().epoch(0)])
    assert all(before)
    assert taken
    assert sorted([*before[0], *before[1], *inputs_of(taken)]) == whole


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"model": IntentRecConfig(heads=2, dropout=0.3, window="9h")}, "model.window"),
        ({"model": IntentRecConfig(heads=4, dropout=0.3, window="8h")}, "model.heads"),
        ({"seed": 5}, "train.seed"),
        ({"loss": {"scores_at_once": 3}}, "train.loss.scores_at_once"),
    ],
)  # fmt: skip
def test_another_config_in_the_same_folder_is_refused_by_its_key(
    change: dict[str, Any], key: str, undisturbed: dict[str, Any], prepared: dict[str, str]
) -> None:
    with pytest.raises(InputError, match=f"was trained with {key} = "):
        make_trainer(prepared["data"], undisturbed["folder"], **EXACT | change).fit()


def test_other_data_in_the_same_folder_are_refused(undisturbed: dict[str, Any], prepared: dict[str, str]) -> None:
    with pytest.raises(InputError, match="was trained on other prepared data"):
        make_trainer(prepared["one group"], undisturbed["folder"], **EXACT).fit()


def test_more_epochs_another_sharding_and_leave_to_skip_damage_may_follow(
    prepared: dict[str, str], tmp_path: Path
) -> None:
    make_trainer(prepared["one group"], tmp_path, epochs=1).fit()
    changes: dict[str, Any] = {
        "tables": {"sharding": {"item": "table_wise", "genres": "row_wise"}},
        "reader": {"on_bad_shard": "skip", "retry_seconds": 1.0, "fetch": 2},
    }
    assert make_trainer(prepared["one group"], tmp_path, epochs=2, **changes).fit().epoch == 2


SELDOM: dict[str, Any] = {"log_steps": 10**6}


@pytest.mark.parametrize(
    ("epoch", "changes"), [(0, {}), (1, {}), (0, SELDOM), (1, SELDOM), (0, SELDOM | {"checkpoint_steps": 4})]
)
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(
    epoch: int, changes: dict[str, Any], prepared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is looked at long after: then the step where it began is named."""
    trainer = make_trainer(prepared["one group"], tmp_path, **changes)
    original, began = Step.losses, list[int]()

    def losses(self: Step, prepared: Prepared) -> Any:
        found = original(self, prepared)
        if trainer.progress.epoch == epoch and prepared.number % 3 == 1:
            began.append(prepared.number + 1)
            return replace(found, item=found.item * torch.nan)
        return found

    monkeypatch.setattr(Step, "losses", losses)
    with pytest.raises(InputError, match=r"the loss is nan .*, so training stops before") as raised:
        trainer.fit()
    assert f" at step {began[0]} of epoch {epoch}," in str(raised.value)
    rows = [batch.rows for batch, _ in trainer.reader.epoch(epoch)]
    number = (began[0] - 1) % len(rows)
    begin, end = sum(rows[:number]), sum(rows[: number + 1])
    assert (
        f"worker 0: rows {begin} to {end} in the epoch's order of train/part-00000-000.parquet row groups 0 to 0"
        in str(raised.value)
    )
    assert (trainer.progress.step == began[0]) == (not changes)
    latest = trainer.checkpoints.latest()
    assert (latest is None) == (epoch == 0)
    assert latest is None or trainer.checkpoints.progress(latest).epoch == 1


def test_a_step_that_is_too_long_diverges_and_is_told(prepared: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"try a lower train\.learning_rate"):
        make_trainer(prepared["one group"], tmp_path, tables={"learning_rate": 1e30, "optimizer": "sgd"}).fit()
    assert not list(tmp_path.rglob("complete.json"))


def test_training_stops_after_epochs_without_a_better_metric(prepared: dict[str, str], tmp_path: Path) -> None:
    values = iter([0.1, 0.3, 0.2, 0.3, 0.4])
    reports: list[dict[str, Any]] = []
    trainer = make_trainer(prepared["one group"], tmp_path, Worker(report=reports.append), epochs=9, patience=2)
    trainer = Trainer(trainer.run, trainer.worker, lambda step: Validation({"MRR": next(values)}, {}, {}))
    progress = trainer.fit()
    assert (progress.epoch, progress.best_epoch, progress.best) == (4, 2, 0.3)
    best = trainer.checkpoints.best()
    assert trainer.checkpoints.progress(best or "").epoch == 2
    assert [(report["model"], report["epoch"]) for report in reports] == [("model", n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(("weighted", "most"), [(True, 3.0), (True, 1.1), (False, 3.0)])
def test_durations_weigh_the_loss_up_to_a_limit_unless_the_config_says_no(
    weighted: bool, most: float, prepared: dict[str, str], tmp_path: Path
) -> None:
    with watched() as taken:
        changes: dict[str, Any] = {"duration_weights": weighted, "most_weight": most}
        make_trainer(prepared["one group"], tmp_path, epochs=1, **changes).fit()
    data = Data(prepared["one group"])
    (whole,) = (batch for batch, _ in data.reader("train", tokens=10**9, shuffle_buffer=10**9).epoch(0))
    stored = whole.weight_Q.unique()
    assert 1.1 < stored.max() < 3
    values = torch.cat([batch.weight_Q for batch in taken]).unique()
    assert values.tolist() == (stored.clamp(max=most).unique().tolist() if weighted else [1.0])


def test_tensorboard_has_torchtitans_names_the_plan_and_the_config(undisturbed: dict[str, Any]) -> None:
    events = EventAccumulator(str(undisturbed["folder"] / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    intents = ["action", "genres", "content_type", "release_age"]
    wanted = {"loss_metrics/global_avg_loss", "loss_metrics/global_avg_item_loss", "grad_norm", "lr", "throughput(tps)"}
    wanted |= {"time_metrics/data_loading(%)", "time_metrics/data_loading(s)", "time_metrics/end_to_end(s)"}
    wanted |= {"memory/max_resident(GiB)", "validation_metrics/MRR", "validation_metrics/NDCG@10"}
    wanted |= {f"validation_metrics/intent_accuracy/{name}" for name in intents}
    wanted |= {f"intent_attention/{name}" for name in intents}
    wanted |= {f"loss_metrics/global_avg_{name}_loss" for name in intents}
    assert wanted <= tags

    curve = [[event.step, event.value] for event in events.Scalars("loss_metrics/global_avg_loss")]
    assert curve == [[step, pytest.approx(loss)] for step, loss in undisturbed["facts"]["train_curve"]]
    parts = ["item", *intents]
    sums = [sum(events.Scalars(f"loss_metrics/global_avg_{name}_loss")[at].value for name in parts) for at in (0, -1)]
    assert sums == [pytest.approx(curve[at][1], rel=1e-5) for at in (0, -1)]
    assert len(events.Scalars("validation_metrics/MRR")) == 3
    attention = sum(events.Scalars(f"intent_attention/{name}")[-1].value for name in intents)
    assert attention == pytest.approx(1, abs=1e-5)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "epochs: 2" in texts["config/text_summary"]
    assert "| item |" in texts["plan/text_summary"]
    assert "| sharding |" in texts["plan/text_summary"]


def test_in_batch_negatives_are_corrected_by_the_counts_of_targets(data: Data, tmp_path: Path) -> None:
    """By what they are drawn from: a user's first event is no target."""
    targets = torch.cat([batch.target_Q for batch, _ in data.reader(windows=True).epoch(0)])
    trainer = make_trainer(data.url, tmp_path, epochs=1, loss={"kind": "sampled", "sampling": "in_batch"})
    assert trainer.step.sampler.counts_V is not None
    assert trainer.step.sampler.counts_V.tolist() == targets.bincount(minlength=data.manifest.items).tolist()
    trainer.fit()
