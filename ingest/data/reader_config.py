"""How shards become batches. Apart from the reader, so that reading a config does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ingest.settings import SettingError, Settings


class ReaderConfig(Settings):
    """How shards become batches; part of the `train` section."""

    tokens: int = Field(default=8192, ge=1)
    """Tokens in a worker's batch, about: a sequence is never cut."""
    most_tokens: int | None = Field(default=None, ge=1)
    """What a worker's batch grows to at most, by whole batches, where there are so few workers of `cluster.workers.max`
    that the global batch stays the same; by default it does not grow. Not when evaluating."""
    shuffle_buffer: int = Field(default=2_000_000, ge=1)
    """Interactions of the row groups whose rows are shuffled together: bounds the memory."""
    max_length: int = Field(default=200, ge=1)
    """Tokens of a sequence at most."""
    windows: bool = False
    """Whether a training row longer than `max_length` gives several sequences, or only its last interactions."""
    fetch: int = Field(default=4, ge=1)
    """Runs of row groups that are being read at a time."""
    retry_seconds: float = Field(default=300, ge=0)
    """How long an object store that fails or does not answer is asked again, with growing pauses."""
    on_bad_shard: Literal["error", "skip"] = "error"
    """Whether a damaged row group ends the run, or is set aside, counted in TensorBoard and named in the report."""

    @model_validator(mode="after")
    def _check(self) -> ReaderConfig:
        if self.most_tokens is not None and self.most_tokens < self.tokens:
            raise SettingError("most_tokens", f"takes at least tokens, {self.tokens}")
        return self

    def merged(self, share: float) -> int:
        """How many batches' worth a worker takes at once where there are `share` of the workers that there can be."""
        return max(min((self.most_tokens or self.tokens) // self.tokens, int(1 / share + 1e-9)), 1)
