"""Any feature name that the schema allows trains, also one that is an attribute of a torch or TorchRec module."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn
from torchrec import EmbeddingCollection
from torchrec.distributed.embedding import ShardedEmbeddingCollection

from embeddings.plan import describe_plan
from ingest.data.schema import DataConfig
from ingest.features.feature import RESERVED
from ingest.prepare.pipeline import prepare
from tests.small import MODEL, START, Data, make_step
from trainer.models.deep import DeepConfig

MODULES = (nn.ModuleDict, nn.Linear, EmbeddingCollection, ShardedEmbeddingCollection)
TAKEN = {name for module in MODULES for name in (*dir(module), *nn.Module().__dict__)}
NAMES = sorted(name for name in TAKEN | {"weight", "table_x", "intent_x", "embeddings", "item_", "x"}
               if re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) and name not in RESERVED)  # fmt: skip


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("intent", [True, False])
def test_every_name_of_an_attribute_trains(intent: bool, tmp_path: Path) -> None:
    assert {"type", "keys", "values", "update", "train", "pop", "to", "float", "half"} <= set(NAMES)
    rng = np.random.default_rng(1)
    log = {"user_id": np.repeat(np.arange(12), 6), "item_id": rng.integers(0, 9, 72),
           "timestamp": pa.array(START + 1000 * np.arange(72), pa.timestamp("ms"))}  # fmt: skip
    pq.write_table(pa.table(log | {name: rng.integers(0, 3, 72) for name in NAMES}), tmp_path / "events.parquet")
    features = [{"name": name, "intent": intent} for name in NAMES]
    config = DataConfig.model_validate({"events": str(tmp_path / "events.parquet"), "features": features})
    prepare(config, str(tmp_path / "data"), lambda _: None)
    data = Data(str(tmp_path / "data"))
    model = MODEL if intent else DeepConfig(window="8h")
    step, batch = make_step(data.manifest, model=model, tables={"sharding": {"type": "row_wise"}}), data.batch(range(6))
    losses, norm = step.train(batch, 0, step.weights_of(batch).tolist())
    assert 0 < norm < math.inf
    assert sorted(losses.intents) == (NAMES if intent else [])
    rows = describe_plan(step.planned).split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in ("item", *NAMES)]
