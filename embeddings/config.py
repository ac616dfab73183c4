"""Dimension, sharding and optimizer of the embedding tables. Apart from them, so that it does not import TorchRec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ingest.settings import Settings

ITEM = "item"
"""The name of the item table."""
Sharding = Literal["data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]


class TableConfig(Settings):
    """The `tables` section: dimension, sharding and optimizer of the embedding tables."""

    dimension: int = Field(default=64, ge=4)
    sharding: dict[str, Sharding] = {ITEM: "row_wise"}
    """Table (`item` or a feature) -> how it is sharded; tables not named are left to TorchRec's planner. A
    data_parallel table (GPU only) is trained by the dense optimizer, the others by the fused one below."""
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    """The fused optimizer, applied in the backward pass. `adam` runs on GPU only."""
    learning_rate: float = Field(default=0.05, gt=0)
    initial_deviation: float = Field(default=0.05, gt=0)
    """Standard deviation of the normal distribution that rows are drawn from."""

    @field_validator("dimension")
    @classmethod
    def _aligned(cls, value: int) -> int:
        if value % 4:
            raise ValueError("takes a multiple of 4: fbgemm reads rows in groups of four floats")
        return value
