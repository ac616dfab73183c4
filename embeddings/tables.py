"""Feature tables: one TorchRec EmbeddingCollection for the items and every category feature.

    T  tokens      C  candidates (targets and negatives)      D  dimension, the same for all tables

Inputs and candidates of the item table are one feature, so that the output layer reads and trains the very same rows,
wherever they are sharded. A worker asks for each row once in a step, however often the row is needed: what travels are
different rows, and the sums of their gradients. All rows of a table travel as one sample of a KeyedJaggedTensor, and on
a GPU as `SAMPLES` whose lengths differ by one at most: tables do not care about sequences, and the stride is the same
on every worker however many users its batch has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType

from embeddings.collision import Collisions
from embeddings.spread import Spread
from embeddings.table_config import ITEM, PREFIX, TableConfig
from ingest.data.batch import Batch, Lists
from ingest.data.manifest import Manifest

SAMPLES = {"cuda": 1024}
"""Of a KeyedJaggedTensor, else one: fbgemm's kernels for a GPU go through each sample in one warp or thread."""


def expected_lookups(tables: list[EmbeddingConfig], tokens: int, candidates: int) -> dict[str, float]:
    """Rows of each table that a batch of `tokens` looks up, were they all different; a list of values counts as one."""
    rows = {table.feature_names[0]: table.num_embeddings for table in tables}
    return {name: float(min(tokens + (candidates if name == ITEM else 0), size)) for name, size in rows.items()}


def lookup_once(tables: list[EmbeddingConfig], wanted: list[Tensor]) -> tuple[KeyedJaggedTensor, list[Tensor]]:
    """The different rows among the `wanted` ones of each table, int64 of any length, and where each is among them.

    A table's rows are ascending through all samples of the KeyedJaggedTensor.
    """
    *begins, end = accumulate((table.num_embeddings for table in tables), initial=0)
    everything = torch.cat([part + begin for part, begin in zip(wanted, begins, strict=True)])
    row_U, place_N = torch.unique(everything, return_inverse=True)
    edges = torch.tensor([*begins, end], device=row_U.device)
    firsts = torch.searchsorted(row_U, edges)
    count_F = firsts.diff()
    row_U -= edges[:-1].repeat_interleave(count_F, output_size=len(row_U))
    split = place_N.split([len(part) for part in wanted])
    places = [place - first for place, first in zip(split, firsts[:-1], strict=True)]
    keys = [table.feature_names[0] for table in tables]
    samples = SAMPLES.get(row_U.device.type, 1)
    nth_S = torch.arange(samples, device=row_U.device)
    length_FS = count_F[:, None] // samples + (nth_S < count_F[:, None] % samples)
    return KeyedJaggedTensor(keys=keys, values=row_U, lengths=length_FS.flatten()), places


def mean_of_lists(rows_UD: Tensor, place_N: Tensor, lengths_T: Tensor) -> Tensor:
    """The mean of the rows at `place_N` of each of T lists, zeros for an empty one: [T, D]."""
    offsets = F.pad(lengths_T.cumsum(0), (1, 0))
    return F.embedding_bag(place_N, rows_UD, offsets, mode="mean", include_last_offset=True)


@dataclass
class Lookup:
    """What is wanted of the tables. The ids of rows travel to the workers that hold them in `exchange`, which all have
    to call at the same time; no weight is read before, so it may be while other things are computed.
    """

    parts: Sequence[Mapping[str, Tensor | Lists]]
    """Values by table."""
    places: list[Tensor]
    """Of each table, where each of its values in all parts is among its different rows."""
    counts: list[int]
    """Different rows of each table."""
    context: Any
    ids: Any
    """TorchRec's: awaited twice, and then what this worker is asked for."""
    exchanged: bool = False

    def exchange(self) -> None:
        if not self.exchanged:
            self.ids, self.exchanged = self.ids.wait().wait(), True


@dataclass(frozen=True)
class Vectors:
    """What `Tables` looks up for a batch."""

    inputs: dict[str, Tensor]
    """Of the item and every category feature, [T, D] each."""
    request: dict[str, Tensor]
    """Of the features of the next interaction that are known at the request, [T, D] each."""
    candidates_CD: Tensor
    """The item table's rows."""
    attributes: dict[str, Tensor]
    """Of the candidates' own features, [C, D] each."""


def _values(value: Tensor | Lists) -> Tensor:
    return value.values if isinstance(value, Lists) else value


def _vectors(rows_UD: Tensor, place_N: Tensor, value: Tensor | Lists) -> Tensor:
    if isinstance(value, Lists):
        return mean_of_lists(rows_UD, place_N, value.lengths)
    return rows_UD.index_select(0, place_N)


class Tables(nn.Module):
    """Holds the EmbeddingCollection of a model, on the meta device and without memory until `embeddings.sharding.shard`
    places it; TorchRec replaces `collection` by its sharded form. Items that training does not know share one row.

    `inputs`: the category features that the model reads besides the item; `request`: those of them that it knows of the
    next interaction when that is requested; `attributes`: those that it knows of candidates. `seed`: of rows that
    evicted values had.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: TableConfig,
        inputs: Sequence[str],
        seed: int,
        request: Sequence[str] = (),
        attributes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.collisions = Collisions(config.zch, config.dimension, config.initial_deviation, seed)
        shared = {table: settings.size for table, settings in config.zch.items()}
        read = [feature for feature in manifest.features if feature.name in {*inputs, *attributes}]
        rows = {ITEM: manifest.items} | {f.name: shared.get(f.name, f.size) for f in read}
        self.configs = [
            EmbeddingConfig(
                name=PREFIX + name,
                num_embeddings=size,
                embedding_dim=config.dimension,
                feature_names=[name],
                data_type=DataType.FP16 if config.precision == "fp16" else DataType.FP32,
            )
            for name, size in rows.items()
        ]
        self.collection = EmbeddingCollection(tables=self.configs, device=torch.device("meta"))
        self.names = list(rows)
        self.inputs, self.requested = [ITEM, *inputs], request
        self.spreads = {name: Spread(size) for name, size in rows.items() if name not in shared}
        """Where values lie that have a row of their own, by table."""
        self.lookups = dict.fromkeys(self.names, 0)
        """Different rows that this worker has looked up in training since it was last set to 0, by table."""

    def ask(
        self,
        batch: Batch,
        candidates_C: Tensor,
        attributes: Mapping[str, Tensor | Lists] = {},
        training: bool = False,
    ) -> Lookup:
        """All that a batch wants at once. `attributes`: values of the candidates' own features, [C] or lists of them.

        In `training` values that share a table compete for its rows.
        """
        inputs = {name: batch.features[name] for name in self.inputs if name != ITEM}
        inputs = {ITEM: batch.in_table(batch.item_T), **inputs}
        request = {name: batch.request[name] for name in self.requested}
        return self._ask((inputs, request, {ITEM: candidates_C}, attributes), training)

    def forward(self, lookup: Lookup) -> Vectors:
        """What `ask` wants. In training lookups are counted."""
        if self.training:
            for name, count in zip(self.names, lookup.counts, strict=True):
                self.lookups[name] += count
        inputs_TD, request_TD, candidates, attributes_CD = self._find(lookup)
        return Vectors(inputs_TD, request_TD, candidates[ITEM], attributes_CD)

    def _ask(self, parts: Sequence[Mapping[str, Tensor | Lists]], training: bool) -> Lookup:
        wanted = {name: [_values(part[name]) for part in parts if name in part] for name in self.names}
        none = _values(next(iter(parts[0].values()))).new_empty(0)
        index = [self._rows(name, torch.cat([none, *values]), training) for name, values in wanted.items()]
        rows, places = lookup_once(self.configs, index)
        context = self.collection.create_context()
        return Lookup(parts, places, rows.length_per_key(), context, self.collection.input_dist(context, rows))

    def _find(self, lookup: Lookup) -> list[dict[str, Tensor]]:
        """The vectors of values, or the means of those of lists, by table for each part, in one exchange."""
        lookup.exchange()
        embedded = self.collection.compute_and_output_dist(lookup.context, lookup.ids)
        found = [dict[str, Tensor]() for _ in lookup.parts]
        for name, place_N in zip(self.names, lookup.places, strict=True):
            rows_UD = embedded[name].values()
            there = [number for number, part in enumerate(lookup.parts) if name in part]
            sizes = [len(_values(lookup.parts[number][name])) for number in there]
            for number, place in zip(there, place_N.split(sizes), strict=True):
                found[number][name] = _vectors(rows_UD, place, lookup.parts[number][name])
        return found

    def _rows(self, table: str, index_N: Tensor, training: bool) -> Tensor:
        """The rows that hold the values `index_N`."""
        spread = self.spreads.get(table)
        return spread.rows(index_N) if spread else self.collisions.rows(table, index_N, training)

    @torch.no_grad()
    def item_rows(self, index_C: Tensor) -> Tensor:
        """Rows of the items `index_C`, [C, D], wherever they are; every worker has to call it at the same time."""
        return self.rows({ITEM: index_C})[ITEM]

    @torch.no_grad()
    def rows(self, wanted: Mapping[str, Tensor | Lists]) -> dict[str, Tensor]:
        """Vectors of values of some tables, [C, D] each, in training, too, without a trace; every worker has to call it
        at the same time."""
        return self._find(self._ask([wanted], training=False))[0]
