"""Sharded tables hold the same weights however they are spread; impossible configs are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ingest.errors import InputError
from tests.scenarios import ALL, SETTINGS, TwoWorkers
from tests.small import Data, make_step, same, weights
from trainer.workers import Worker

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("setting", ["row_wise", "table_wise", "planner", "sampled"])
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


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"optimizer": "adam"}, "tables.optimizer: fbgemm has no fused adam on CPU"),
        ({"sharding": {"itms": "row_wise"}}, "tables.sharding: no table 'itms'; allowed: item, action"),
        ({"sharding": {"item": "data_parallel"}}, "tables.sharding: .*data_parallel.* on CPU; allowed: table_wise"),
    ],
)
def test_what_can_not_be_is_refused(tables: dict[str, Any], message: str, data: Data) -> None:
    with pytest.raises(InputError, match=message):
        make_step(data.manifest, Worker(), tables=tables)
