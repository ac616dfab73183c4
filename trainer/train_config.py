"""The `train` section: batches, tables, loss, optimizer, epochs, checkpoints. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embeddings.table_config import TableConfig
from ingest.data.reader_config import ReaderConfig
from ingest.settings import Settings


class LossConfig(Settings):
    """The `loss` section of a model's training."""

    kind: Literal["sampled", "full"] = "sampled"
    """Softmax over negatives shared by the batch, or over the whole catalogue."""
    negatives: int = Field(default=512, ge=1)
    """Of a step, drawn once for the whole batch."""
    sampling: Literal["uniform", "log_uniform", "in_batch", "mixed"] = "log_uniform"
    """Item indices fall with the items' popularity, so `log_uniform` draws popular items more often. `in_batch` draws
    from the targets of the global batch, `mixed` both from them and uniformly."""
    in_batch_share: float = Field(default=0.5, gt=0, lt=1)
    """The part of `mixed` negatives that comes from the batch."""
    scores_at_once: int | None = Field(default=None, ge=1)
    """Scores in memory at a time, of all those of the batch's targets with the items or negatives; by default what a
    CPU keeps in its cache, and more on a GPU."""

    @property
    def needs_counts(self) -> bool:
        """Whether it needs to know how often each item is a target of training."""
        return self.kind == "sampled" and self.sampling in ("in_batch", "mixed")


class TrainConfig(Settings):
    """How a neural model is trained. A model's own `train` keys are laid over these."""

    epochs: int = Field(default=10, ge=1)
    """At most; `patience` may end training before."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW for the dense part; the tables have their own. For the batch of all workers that there can be: one of a
    part of it has this times the part's square root, and so have tables whose optimizer is an Adam (the square root
    rule, Malladi et al., arXiv 2205.10287)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW, for matrices alone: not for biases and the scales of norms. Tables have none."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the dense learning rate rises from 0."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """What the learning rates, also those of the tables, are multiplied by after each epoch."""
    clip_norm: float = Field(default=1.0, gt=0)
    """The dense gradient's norm is cut to this."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products: `bf16` casts their inputs (autocast); weights, softmax, losses and optimizers stay in fp32.
    It is for GPUs, where it takes the jagged flash attention kernel."""
    compile: bool = False
    """Whether the feed-forward layers go through torch.compile. It takes some minutes at the start."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the first weights, the order of the data, dropout and negatives."""
    metric: str = "MRR"
    """The validation metric that chooses the best epoch; the evaluation knows which there are."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation metric after which training stops."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints inside an epoch; at its end there is one always."""
    checkpoint_minutes: float | None = Field(default=10.0, gt=0)
    """Minutes between checkpoints inside an epoch, by the first worker's clock; null for none."""
    checkpoint_gib: float | None = Field(default=None, gt=0)
    """Memory of the machine that a worker's copy of its rows may take while it is written; by default half of what the
    tables leave. Where the rows are more, training waits until all but this much is written."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept besides the best one. With 1 there is none before it to go on from where it is damaged."""
    log_steps: int = Field(default=10, ge=1)
    """Steps between two points in TensorBoard."""
    unknown_share: float = Field(default=0.01, ge=0, lt=1)
    """The share of inputs (items, values of category features) that are unknown in a training step, so that the rows
    for unknown values are trained; 0 for none."""
    duration_weights: bool = True
    """Whether a target's loss is weighted by its duration over the training mean, where the log has one."""
    most_weight: float = Field(default=3.0, gt=0)
    """The weight of durations that are longer, so that a few of them are not the whole loss."""
    reader: ReaderConfig = ReaderConfig()
    """How shards become batches."""
    tables: TableConfig = TableConfig()
    """The embedding tables."""
    loss: LossConfig = LossConfig()
    """Of the next item."""
