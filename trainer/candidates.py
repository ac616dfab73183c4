"""The candidates of a batch as the tables look them up: rows, attributes, and what is taken around the requests.

Q  targets     C  candidates
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from embeddings.workers import Worker
from ingest.data.batch import Batch
from ingest.data.items import ItemTable
from ingest.data.manifest import Manifest
from ingest.data.moments import Snapshots, take_snapshots
from ingest.data.successions import Successions
from ingest.features.feature import FIRST_VALUE, UNKNOWN
from trainer.distinct import distinct
from trainer.models.registry import NeuralConfig
from trainer.scores.ages import Dates
from trainer.scores.attributes import Attributes
from trainer.scores.moments import Moments
from trainer.scores.scores import Facts, Further
from trainer.scores.transitions import Followers
from trainer.train_config import TrainConfig
from trainer.unknown import chosen

T = TypeVar("T")


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
        if known is None and {"attributes", "recent", "transitions", "age", "intents"} & set(model.knows):
            raise ValueError(f"a model that knows {', '.join(model.knows)} needs the data set, got None")
        self.known, self.manifest, self.settings = known, manifest, model.moments
        self.recent, self.transitions, self.seed = "recent" in model.knows, "transitions" in model.knows, config.seed
        acts, lasting = "intents" in model.knows, [feature for feature in manifest.attributes if feature.intent]
        self.with_attributes = "attributes" in model.knows
        self.labels = [feature.name for feature in lasting if acts]
        self.values: Attributes | None = None
        if known is not None and (self.with_attributes or self.labels):
            read = manifest.attributes if self.with_attributes else lasting
            self.values = Attributes(known.items, read, worker.device)
        self.dates = Dates(manifest, known.items, worker.device) if known is not None and "age" in model.knows else None
        warm = not (self.recent or self.transitions or self.with_attributes)
        self.cold_share = 0.0 if warm else model.cold_share
        self.own_rows = self.cold_share < 1
        """Whether candidates have any but the row for unknown items."""

    def of(self, batch: Batch, item_C: Tensor, number: int | None) -> tuple[Tensor, Facts, Further]:
        """The rows of the candidates `item_C`, what is known of them, and further ones; where there are further ones,
        the rows and what is known are those of the different ones of all, `Further.place_C` of which they are.

        In training step `number` a share of the items has the row for unknown ones, the same on all workers.
        """
        further = self._further(batch, number)
        if further.items:
            item_C, place_C = distinct(torch.cat([item_C, *further.items]))
            further = replace(further, place_C=place_C)
        row_C = self.rows(item_C)
        if number is not None and self.cold_share:
            row_C = row_C.masked_fill(chosen(row_C, self.cold_share, self.seed, number), UNKNOWN)
        return row_C, self.facts(item_C), further

    def rows(self, item_C: Tensor) -> Tensor:
        """The rows of the item table that items have as candidates."""
        return item_C.masked_fill(item_C >= (self.manifest.items if self.own_rows else FIRST_VALUE), UNKNOWN)

    def facts(self, item_C: Tensor) -> Facts:
        """What is known of items."""
        values = self.values.of(item_C) if self.values else {}
        labels = {name: values[name] for name in self.labels}
        return Facts(values if self.with_attributes else {}, labels, self.dates.of(item_C) if self.dates else None)

    def _further(self, batch: Batch, number: int | None) -> Further:
        """Training counts training events; what is live counts those of all splits."""
        if not (self.recent or self.transitions):
            return Further()
        at_Q = batch.target_position_Q
        time_Q, settings = batch.request_time_T[at_Q], self.settings
        until_Q, total = settings.updated(time_Q, self.manifest.begins), number is None and settings.live
        if number is None and not settings.live:
            frozen_Q = self.manifest.frozen_until(time_Q.cpu().numpy())
            if frozen_Q is not None:
                until_Q, total = torch.from_numpy(frozen_Q).to(time_Q.device), True
        moments, followers = None, None
        if self.recent:
            value_Q = batch.request[settings.by][at_Q] if settings.by is not None else None
            moments = Moments.of(self._snapshots(total), time_Q, until_Q, settings.milliseconds, value_Q)
        if self.transitions:
            last_Q = batch.past_T[at_Q]
            followers = Followers.of(self._successions(total), last_Q, time_Q, until_Q, settings.transitions)
        return Further(moments, followers)

    def _snapshots(self, total: bool) -> Snapshots:
        assert self.known is not None
        data, items = self.known.data, self.known.items
        step, size, by = self.settings.milliseconds, self.settings.items, self.settings.by
        key = data, self.manifest.fingerprint, "snapshots", step, size, total, by
        return _kept(key, lambda: take_snapshots(data, self.manifest, items, step, size, total, by))

    def _successions(self, total: bool) -> Successions:
        assert self.known is not None
        data, manifest = self.known.data, self.manifest
        key = data, manifest.fingerprint, "successions", total
        return _kept(key, lambda: Successions.load(data, manifest.catalogue, total))


KEPT = 4
"""What a process keeps of this kind: training's, and what evaluating counts."""
_KEPT: dict[tuple[object, ...], Any] = {}
"""By data set and settings, so that the models of a config share them."""


def _kept(key: tuple[object, ...], load: Callable[[], T]) -> T:
    if key not in _KEPT:
        while len(_KEPT) >= KEPT:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[key] = load()
    found: T = _KEPT[key]
    return found
