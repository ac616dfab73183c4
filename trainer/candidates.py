"""The candidates of a batch as the tables look them up: rows, attributes, and the items of the moments.

Q  targets     C  candidates     U  different items of the batch's moments
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.workers import Worker
from ingest.data.batch import Batch
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.moments import Snapshots, take_snapshots
from ingest.durations import parse_duration
from ingest.features.feature import UNKNOWN
from trainer.models.registry import NeuralConfig
from trainer.scores.ages import Dates
from trainer.scores.attributes import Attributes
from trainer.scores.moments import Moments
from trainer.scores.scores import Facts
from trainer.train_config import TrainConfig
from trainer.unknown import chosen


@dataclass(frozen=True)
class Known:
    """A prepared data set: its folder and its items."""

    data: str
    items: ItemTable


class CandidateReader:
    """Reads what a model's scores know of candidates. `ValueError` where they need `known` and there is none."""

    def __init__(
        self, model: NeuralConfig, config: TrainConfig, manifest: Manifest, worker: Worker, known: Known | None
    ) -> None:
        if known is None and {"attributes", "recent", "age", "intents"} & set(model.knows):
            raise ValueError(f"a model that knows {', '.join(model.knows)} needs the data set, got None")
        self.known, self.manifest, self.settings = known, manifest, model.moments
        self.recent, self.seed = "recent" in model.knows, config.seed
        acts, lasting = "intents" in model.knows, [feature for feature in manifest.attributes if feature.intent]
        self.with_attributes = "attributes" in model.knows
        self.labels = [feature.name for feature in lasting if acts]
        self.values: Attributes | None = None
        if known is not None and (self.with_attributes or self.labels):
            read = manifest.attributes if self.with_attributes else lasting
            self.values = Attributes(known.items, read, worker.device)
        self.dates = Dates(manifest, known.items, worker.device) if known is not None and "age" in model.knows else None
        self.cold_share = model.cold_share if self.recent or self.with_attributes else 0.0

    def of(self, batch: Batch, item_C: Tensor, number: int | None) -> tuple[Tensor, Facts, Moments | None]:
        """The rows of the candidates `item_C` and of the moments' items, what is known of them, and the moments.

        In training step `number` a share of the items has the row for unknown ones, the same on all workers.
        """
        moments = self._moments(batch, number) if self.recent else None
        if moments is not None:
            item_C = torch.cat([item_C, moments.item_U])
        row_C = batch.in_table(item_C)
        if number is not None and self.cold_share:
            row_C = row_C.masked_fill(chosen(row_C, self.cold_share, self.seed, number), UNKNOWN)
        return row_C, self.facts(item_C), moments

    def facts(self, item_C: Tensor) -> Facts:
        """What is known of items."""
        values = self.values.of(item_C) if self.values else {}
        labels = {name: values[name] for name in self.labels}
        return Facts(values if self.with_attributes else {}, labels, self.dates.of(item_C) if self.dates else None)

    def _moments(self, batch: Batch, number: int | None) -> Moments:
        """Training counts training events, up to a time before the requests; what is live counts all of them."""
        time_Q, lag = batch.request_time_T[batch.target_position_Q], 0
        if number is not None and self.settings.lag is not None:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
            lag = int(torch.rand((), generator=generator, dtype=torch.float64) * parse_duration(self.settings.lag))
        snapshots = self._taken(number is None and self.settings.live)
        return Moments.of(snapshots, time_Q, self.settings.milliseconds, lag)

    def _taken(self, total: bool) -> Snapshots:
        assert self.known is not None
        key = self.known.data, self.manifest.fingerprint, self.settings.milliseconds, self.settings.items, total
        if key not in _SNAPSHOTS:
            while len(_SNAPSHOTS) >= KEPT:
                _SNAPSHOTS.pop(next(iter(_SNAPSHOTS)))
            _SNAPSHOTS[key] = take_snapshots(self.known.data, self.manifest, self.known.items, *key[2:])
        return _SNAPSHOTS[key]


KEPT = 2
"""Snapshots that a process keeps: training's, and those that evaluating counts."""
_SNAPSHOTS: dict[tuple[str, str, int, int, bool], Snapshots] = {}
"""By data set and settings, so that the models of a config share them."""
