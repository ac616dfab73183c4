"""Fixtures shared by the tests of tables, training and evaluation; TorchRec is imported only by those who ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.scenarios import TwoWorkers
    from tests.small import Data


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small data set with several row groups, and one whose training rows are a single row group."""
    from tests.small import make_data

    folder = tmp_path_factory.mktemp("small")
    return {
        "data": make_data(folder / "several"),
        "one group": make_data(folder / "single", users=20, row_group=10_000),
    }


@pytest.fixture(scope="session")
def data(prepared: dict[str, str]) -> Data:
    from tests.small import Data

    return Data(prepared["data"])


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    import torch

    import embeddings.sharding
    from tests.scenarios import BLOCK_ROWS
    from trainer.workers import single_process

    torch.set_num_threads(1)
    before, embeddings.sharding.BLOCK_ROWS = embeddings.sharding.BLOCK_ROWS, BLOCK_ROWS
    with single_process(torch.device("cpu")):
        yield
    embeddings.sharding.BLOCK_ROWS = before


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one and two workers leave checkpoints for each other."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def two_workers(prepared: dict[str, str], shared: Path) -> Iterator[TwoWorkers]:
    """Two processes that run every scenario of tests/scenarios.py, after one process has left its checkpoint."""
    import torch

    from tests.scenarios import TwoWorkers, run
    from trainer.workers import Worker, single_process

    with single_process(torch.device("cpu")):
        run("save", prepared, shared, Worker())
    workers = TwoWorkers(prepared, shared)
    yield workers
    workers.close()
