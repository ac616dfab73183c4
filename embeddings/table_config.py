"""Dimension, sharding and optimizer of the embedding tables. Apart from them, so that it does not import TorchRec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ingest.settings import Settings

ITEM = "item"
"""The name of the item table."""
PREFIX = "table_"
"""What a table's name begins with inside torch modules, where a feature's own may be an attribute (`type`, `keys`)."""
Sharding = Literal["data_parallel", "table_wise", "row_wise", "column_wise"]
"""TorchRec has its other kinds for pooled EmbeddingBagCollections alone, and sequences need an EmbeddingCollection."""
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
Optimizer = Literal["rowwise_adagrad", "rowwise_adam", "sgd", "adagrad", "adam"]


def table_of(parameter: str) -> str | None:
    """The table whose rows a model's parameter of this name holds, None for one of the network."""
    _, found, rest = parameter.rpartition(f".embeddings.{PREFIX}")
    return rest.removesuffix(".weight") if found else None


class CollisionConfig(Settings):
    """How the values of a feature share a table smaller than its vocabulary (TorchRec's ZCH)."""

    size: int = Field(ge=2)
    """Rows of the table; the last is shared by all values that hold none."""
    eviction: Literal["distance_lfu", "lfu", "lru"] = "distance_lfu"
    """Who gives way to new values: the least often seen for the time since, the least often, or the longest unseen."""
    interval: int = Field(default=100, ge=1)
    """Steps after which the values seen since compete for rows."""


class TableConfig(Settings):
    """The `tables` section: dimension, sharding, memory and optimizer of the embedding tables."""

    dimension: int = Field(default=64, ge=4, multiple_of=4)
    """A multiple of 4: fbgemm reads rows in groups of four floats."""
    sharding: dict[str, Sharding] = {ITEM: "row_wise"}
    """Table (`item` or a feature) -> how it is sharded; tables not named are left to TorchRec's planner. A
    data_parallel table (GPU only) is trained by the dense optimizer, the others by the fused one below."""
    kernel: dict[str, Kernel] = {}
    """Table -> where its rows live: in the device's memory (`fused`, the default), in the machine's (`fused_uvm`), or
    there with a cache on the device (`fused_uvm_caching`). Both UVM kernels are for GPU only, the cache
    for tables without `zch`."""
    cache_load_factor: float = Field(default=0.2, gt=0, lt=1)
    """Share of a `fused_uvm_caching` table's rows that the device caches."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of the rows; the optimizer's state is always fp32."""
    communication: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision in which rows and their gradients travel between workers; bf16 on GPU only."""
    optimizer: Optimizer = "rowwise_adagrad"
    """The fused optimizer, applied in the backward pass. `adam` and `rowwise_adam` run on GPU only."""
    learning_rate: float = Field(default=0.05, gt=0)
    """Of the fused optimizer."""
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Table -> its own learning rate, where it is other than `learning_rate`."""
    initial_deviation: float = Field(default=0.05, gt=0)
    """Standard deviation of the normal distribution that rows are drawn from."""
    zch: dict[str, CollisionConfig] = {}
    """Feature -> a table of few rows for its many values, with eviction. Not for the item table: its rows are the
    output layer, where items that share a row could not be told apart, and negatives would count as seen."""
    hbm_gib: float | None = Field(default=None, gt=0)
    """Memory of each GPU that tables may take; by default 85% of what it has."""
    ddr_gib: float | None = Field(default=None, gt=0)
    """Memory of the machine that each worker's tables may take; by default 85% of it, shared by its workers."""

    @model_validator(mode="after")
    def _check(self) -> TableConfig:
        if ITEM in self.zch:
            raise ValueError(
                "zch: the item table's rows are the output layer, where items that share a row could not be told "
                "apart: takes features"
            )
        for table in self.zch:
            if (kind := self.sharding.get(table)) in ("column_wise", "data_parallel"):
                raise ValueError(f"sharding of {table!r}: with zch it takes row_wise or table_wise, got {kind}")
            if self.kernel.get(table) == "fused_uvm_caching":
                raise ValueError(
                    f"kernel of {table!r}: with zch it takes fused or fused_uvm, got fused_uvm_caching, whose cache "
                    "would keep the rows of values that have given way"
                )
        for table in self.learning_rates:
            if self.sharding.get(table) == "data_parallel":
                raise ValueError(
                    f"learning_rates of {table!r}: a data_parallel table has that of the network, train.learning_rate"
                )
        for table, kernel in self.kernel.items():
            if kernel != "fused" and self.sharding.get(table) == "data_parallel":
                raise ValueError(f"kernel of {table!r}: a data_parallel table takes no {kernel}")
        return self
