"""One small Ray cluster for all tests that need one, and small logs of other people's making."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("INTENTREC_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray cluster of two CPUs on this machine, for the whole session."""
    from cluster.config import ClusterConfig
    from cluster.launch import ray_cluster

    with ray_cluster(ClusterConfig(workers=2)):
        yield


def real_data(name: str) -> Path:
    """The folder of a real data set; the test is skipped where it is not there."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set INTENTREC_DATA to a folder with {name}")
    return folder


SHOP = """
name: shop
storage: {storage}
data:
  events: {folder}/clicks.parquet
  items: {folder}/products.parquet
  user: customer
  item: sku
  time: at
  time_unit: s
  features:
    - {{name: step, column: what, intent: true}}
    - {{name: category, of: item, column: department, intent: true}}
    - {{name: price, kind: number, of: item}}
train:
  epochs: 2
  reader: {{tokens: 512, max_length: 20}}
  tables: {{dimension: 16}}
models:
  intentrec: {{kind: intentrec, window: 1h}}
  markov: {{kind: markov}}
evaluate: {{filter_seen: false}}
"""


def shop_log(folder: Path, users: int = 60, items: int = 30, seed: int = 0) -> dict[str, list]:
    """A shop's log with string ids: who looks at a product then puts it into the cart, then buys it."""
    random = np.random.default_rng(seed)
    rows: dict[str, list] = {"customer": [], "sku": [], "at": [], "what": []}
    start = int(datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC).timestamp())
    for user in range(users):
        now = start + int(random.integers(0, 86_400))
        for _ in range(int(random.integers(2, 6))):
            item = int(random.zipf(1.5)) % items
            for what in ("view", "cart", "buy")[: int(random.integers(1, 4))]:
                now += int(random.integers(5, 600))
                for column, value in zip(rows, (f"c{user:03}", f"sku-{item}", now, what), strict=True):
                    rows[column].append(value)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), folder / "clicks.parquet")
    departments = ["shoes", "books", "toys"]
    products = {
        "sku": [f"sku-{item}" for item in range(items)],
        "department": [departments[item % 3] for item in range(items)],
        "price": random.uniform(1, 100, items),
    }
    pq.write_table(pa.table(products), folder / "products.parquet")
    return rows


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The config of a shop whose log has other column names and other intents, and no durations."""
    shop_log(tmp_path)
    config = tmp_path / "shop.yaml"
    config.write_text(SHOP.format(folder=tmp_path, storage=tmp_path / "runs"))
    return config
