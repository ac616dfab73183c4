"""The plan's account of memory against what is there, its description, and plans that do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

import embeddings.sharding
from embeddings.plan import describe_plan, put_on
from embeddings.sharding import shard
from embeddings.table_config import PREFIX
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from tests.scenarios import ALL, HALF, SETTINGS, TwoWorkers
from tests.small import MODEL, Data, make_step, make_trainer, train_config, watched
from trainer.recommender import build

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("setting", SETTINGS | HALF)
def test_the_account_is_what_each_worker_holds(setting: str, two_workers: TwoWorkers) -> None:
    results = two_workers.result(f"steps/{setting}")
    for rank, result in enumerate(results):
        need = result["needs"][rank]
        assert (need.weights, need.state) == result["held"]
        assert need.on_machine == need.weights + need.state + need.communication
        assert need.on_device == 0
    assert results[0]["needs"] == results[1]["needs"]
    assert sum(result["held"][0] for result in results) > 0


def test_shards_are_on_the_devices_that_their_workers_have() -> None:
    """Of three workers one is alone on its machine; the planner takes the first one's for the number of all."""
    shards = [ShardMetadata([8 * rank, 0], [8, 4], f"rank:{rank}/cuda:0") for rank in range(3)]
    row_wise = ParameterSharding("row_wise", "fused", [0, 1, 2], EnumerableShardingSpec(shards))
    whole = ParameterSharding("data_parallel", "dense", [0, 1, 2], None)
    plan = ShardingPlan({"tables": EmbeddingModuleShardingPlan({f"{PREFIX}item": row_wise, f"{PREFIX}genres": whole})})
    put_on(plan, ["cuda:0", "cuda:0", "cuda:1"])
    assert [str(shard.placement) for shard in shards] == ["rank:0/cuda:0", "rank:1/cuda:0", "rank:2/cuda:1"]


def test_row_wise_adagrad_keeps_one_number_a_row(data: Data) -> None:
    (need,) = make_step(data.manifest, tables={"optimizer": "rowwise_adagrad"}).planned.needs
    (sgd,) = make_step(data.manifest, tables={"optimizer": "sgd"}).planned.needs
    rows = data.manifest.items + sum(f.size for f in data.manifest.features)
    assert (need.weights, need.state, sgd.state) == (rows * 8 * 4, rows * 4, 0)


def test_the_description_has_the_memory_and_the_share_of_lookups(data: Data) -> None:
    step = make_step(data.manifest, loss={"kind": "sampled", "negatives": 60})
    text = describe_plan(step.planned)
    shares = {line.split("|")[1].strip(): line.split("|")[6].strip() for line in text.splitlines()[2 : 2 + len(ALL)]}
    wanted = dict.fromkeys(ALL, 60) | {"item": 60 + 60 + 60}
    sizes = {t.feature_names[0]: t.num_embeddings for t in step.recommender.tables.configs}
    most = {name: min(size, wanted[name]) for name, size in sizes.items()}
    assert shares == {name: f"{rows / sum(most.values()):.1%}" for name, rows in most.items()}
    rank = text.splitlines()[-1]
    assert re.fullmatch(r"\| 0 \| 0\.00 MiB \| 0\.00 MiB \| 0\.\d\d MiB \| 0\.00 MiB \| 0\.\d\d MiB \|", rank)


def test_shares_of_lookups_are_counted(prepared: dict[str, str], tmp_path: Path) -> None:
    points: list[dict[str, float]] = []
    trainer = make_trainer(prepared["data"], tmp_path, epochs=1, log_steps=1, unknown_share=0)
    original = trainer._lookup_shares
    trainer._lookup_shares = lambda: points.append(original()) or points[-1]  # type: ignore[func-returns-value,method-assign]
    with watched() as taken:
        trainer.fit()
    assert len(points) == len(taken)
    for batch, shares in zip(taken, points, strict=True):
        values = {name: batch.features[name] for name in ALL[1:]}
        rows = {name: len(set((v if isinstance(v, Tensor) else v.values).tolist())) for name, v in values.items()}
        rows["item"] = len({*batch.item_T.tolist(), *range(FIRST_VALUE, trainer.manifest.items)})
        expected = {f"tables/lookups(%)/{name}": 100 * count / sum(rows.values()) for name, count in rows.items()}
        assert shares == pytest.approx(expected)


def test_tables_that_do_not_fit_one_worker_are_refused_on_all(data: Data, two_workers: TwoWorkers) -> None:
    for (message,) in two_workers.result("refused"):
        assert re.match(r"the tables do not fit: rank 1 needs 0\.\d\d MiB of machine memory \(weights ", message)
        assert "rank 0" not in message
        assert f"Largest tables: item ({data.manifest.items} x 8 fp32, row_wise), genres (" in message


@pytest.mark.parametrize("sharding", [{}, {"item": "row_wise"}, {"item": "table_wise"}, {"item": "column_wise"}])
def test_a_plan_that_does_not_fit_is_refused_before_anything_is_allocated(
    sharding: dict[str, Any], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundred billion rows, which no machine that runs this can hold, under the planner's choice and a forced one."""
    manifest = data.manifest.model_copy(update={"items": 10**11})
    config = train_config(tables={"dimension": 64, "optimizer": "rowwise_adagrad", "sharding": sharding})
    model = build(MODEL, config, manifest)
    monkeypatch.setattr(embeddings.sharding, "DistributedModelParallel", lambda *_, **__: pytest.fail("is placed"))
    message = r"rank 0 needs 24214\.\d\d GiB of machine memory \(weights 23841\.86 GiB, optimizer state 372\.53 GiB"
    with pytest.raises(InputError, match=message):
        shard(model, model.tables.configs, config.tables, torch.device("cpu"), 0, {"item": 100.0})
