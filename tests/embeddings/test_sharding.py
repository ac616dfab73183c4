"""Sharded tables hold the same weights however they are spread; impossible configs are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embeddings.table_config import table_of
from embeddings.workers import Worker, single_process
from ingest.errors import InputError
from ingest.settings import build_settings
from tests.scenarios import ALL, HALF, SETTINGS, TwoWorkers
from tests.small import Data, make_step, same, weights
from trainer.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("setting", ["row_wise", "table_wise", "planner", "log_uniform"])
def test_initial_weights_are_the_same_on_any_number_of_workers_and_under_any_sharding(
    setting: str, data: Data, two_workers: TwoWorkers
) -> None:
    reference = weights(make_step(data.manifest, tables={"sharding": dict.fromkeys(ALL, "table_wise")}))
    for result in two_workers.result(f"steps/{setting}"):
        same(result["before"], reference)
    same(weights(make_step(data.manifest, **SETTINGS[setting])), reference)


def test_initial_weights_are_the_same_where_columns_are_split(data: Data, two_workers: TwoWorkers) -> None:
    reference = weights(make_step(data.manifest, **SETTINGS["column_wise"]))
    for result in two_workers.result("steps/column_wise"):
        same(result["before"], reference)


@pytest.mark.parametrize("setting", ["row_wise", "table_wise", "column_wise"])
def test_tables_are_sharded_as_the_config_says(setting: str, two_workers: TwoWorkers) -> None:
    for result in two_workers.result(f"steps/{setting}"):
        assert result["plan"] == dict.fromkeys(ALL, setting)


def test_rows_are_drawn_from_a_normal_distribution_and_no_two_are_alike(data: Data) -> None:
    drawn = weights(make_step(data.manifest, tables={"initial_deviation": 0.2, "dimension": 64}))
    item = drawn["item"]
    assert abs(item.mean()) < 5 * 0.2 / item.numel() ** 0.5
    assert item.std().item() == pytest.approx(0.2, rel=0.05)
    rows = torch.cat([drawn[name] for name in ALL])
    assert len(rows.unique(dim=0)) == len(rows)
    other = weights(make_step(data.manifest, seed=1, tables={"initial_deviation": 0.2, "dimension": 64}))
    assert not torch.isclose(item, other["item"]).any(dim=1).all()


@pytest.mark.parametrize("kind", ["table_row_wise", "grid_shard", "table_column_wise"])
def test_a_sharding_that_sequences_have_not_is_refused_by_name(kind: str) -> None:
    with pytest.raises(InputError, match=rf"tables.sharding.item: .*'data_parallel', .* 'column_wise', got '{kind}'"):
        build_settings(TrainConfig, {"tables": {"sharding": {"item": kind}}}, "config")


@pytest.mark.parametrize("setting", HALF)
def test_half_precision_is_near_to_single_and_not_the_same(setting: str, two_workers: TwoWorkers) -> None:
    (single, _), (half, other) = two_workers.result("steps/row_wise"), two_workers.result(f"steps/{setting}")
    same(half["third"], other["third"])
    same(half["third"], single["third"], 2e-2)
    assert not torch.equal(half["third"]["item"], single["third"]["item"])
    moved = (half["third"]["item"] - half["before"]["item"]).abs()
    assert moved.max() > 0.1
    if setting == "fp16 tables":
        same({"item": half["third"]["item"].half().float()}, {"item": half["third"]["item"]})


def test_rows_that_are_cut_into_samples_are_the_same_rows(two_workers: TwoWorkers) -> None:
    """Also where a table has fewer than there are samples, and a worker none."""
    for whole, cut in zip(
        two_workers.result("steps/row_wise"), two_workers.result("steps/rows in samples"), strict=True
    ):
        same(cut["third"], whole["third"])
        assert cut["losses"] == whole["losses"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["fused_uvm", "fused_uvm_caching"])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "rowwise_adam"])
def test_rows_in_the_machines_memory_train_as_those_on_the_gpu(kernel: str, optimizer: str, data: Data) -> None:
    device, after = torch.device("cuda", 0), []
    for chosen in ("fused", kernel):
        with single_process(device):
            tables = {"kernel": {"item": chosen}, "optimizer": optimizer, "cache_load_factor": 0.5}
            step = make_step(data.manifest, Worker(device=device), tables=tables)
            for number in range(3):
                batch = data.batch(range(8 * number, 8 * number + 8)).to(device)
                step.train(batch, number, step.weights_of(batch).tolist())
            after.append({name: value.cpu() for name, value in weights(step).items()})
            need = step.planned.needs[0]
            assert (need.on_machine > 0) == (chosen != "fused")
    same(after[1], after[0], 1e-4)


def test_a_table_has_its_own_learning_rate(data: Data) -> None:
    """After one step of SGD the ways that rows have gone are as the rates."""
    moved = []
    for rates in ({}, {"item": 0.3}):
        step = make_step(data.manifest, tables={"optimizer": "sgd", "learning_rate": 0.1, "learning_rates": rates})
        before, batch = weights(step), data.batch(range(8))
        step.train(batch, 0, step.weights_of(batch).tolist())
        after = weights(step)
        moved.append({name: after[name] - before[name] for name in ALL})
    torch.testing.assert_close(moved[1]["item"], 3 * moved[0]["item"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[1]["action"], moved[0]["action"])
    assert moved[0]["item"].abs().max() > 1e-4


def test_a_table_of_the_dense_optimizer_has_no_weight_decay(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """As no table has."""
    monkeypatch.setattr("embeddings.sharding._check", lambda *arguments: None)  # which is for GPUs
    step = make_step(data.manifest, weight_decay=0.5, tables={"sharding": {"action": "data_parallel"}})
    names = {id(parameter): name for name, parameter in step.dense.items()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in step.optimizer.param_groups)
    assert [table_of(name) for name in others if table_of(name)] == ["action"]
    assert decayed
    assert not any(table_of(name) for name in decayed)
    assert len(decayed) + len(others) == len(step.dense)


def test_a_table_of_the_dense_optimizer_has_no_rate_of_its_own() -> None:
    tables = {"sharding": {"action": "data_parallel"}, "learning_rates": {"action": 0.1}}
    with pytest.raises(InputError, match="learning_rates of 'action': a data_parallel table has that of the network"):
        build_settings(TrainConfig, {"tables": tables}, "config")


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optimizer": "adam"}, "tables.optimizer: fbgemm has no fused adam on CPU"),
        ({"sharding": {"itms": "row_wise"}}, "tables.sharding: no table 'itms'; allowed: item, action"),
        ({"optimizer": "rowwise_adam"}, "tables.optimizer: fbgemm has no fused rowwise_adam on CPU"),
        ({"kernel": {"item": "fused_uvm_caching"}}, "tables.kernel: fused_uvm_caching .* on CPU allowed: fused"),
        ({"kernel": {"itm": "fused"}}, "tables.kernel: no table 'itm'; allowed: item, action"),
        ({"learning_rates": {"itm": 0.1}}, "tables.learning_rates: no table 'itm'"),
        ({"communication": "bf16"}, "tables.communication: gloo carries no bf16"),
        ({"sharding": {"item": "data_parallel"}}, "tables.sharding: .*data_parallel.* on CPU; allowed: table_wise"),
    ],
)
def test_what_can_not_be_is_refused(tables: dict[str, Any], message: str, data: Data) -> None:
    with pytest.raises(InputError, match=message):
        make_step(data.manifest, Worker(), tables=tables)
