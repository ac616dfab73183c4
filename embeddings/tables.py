"""Feature tables: one TorchRec EmbeddingCollection for the items and every category feature.

    T  tokens      C  candidates (targets and negatives)      D  dimension, the same for all tables

Inputs and candidates of the item table are one feature, so that the output layer reads and trains the very same rows,
wherever they are sharded. A worker asks for each row once in a step, however often the row is needed: what travels are
different rows, and the sums of their gradients. All rows of a table travel as one sample of a KeyedJaggedTensor: tables
do not care about sequences, and the stride stays 1 on every worker however many users its batch has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType

from embeddings.collision import Collisions
from embeddings.spread import Spread
from embeddings.table_config import ITEM, PREFIX
from ingest.data.batch import Batch, Lists
from ingest.data.manifest import Manifest


def expected_lookups(tables: list[EmbeddingConfig], tokens: int, candidates: int) -> dict[str, float]:
    """Rows of each table that a batch of `tokens` looks up, were they all different; a list of values counts as one."""
    rows = {table.feature_names[0]: table.num_embeddings for table in tables}
    return {name: float(min(tokens + (candidates if name == ITEM else 0), size)) for name, size in rows.items()}


@dataclass(frozen=True)
class Lookup:
    """The different rows to look up, and where each wanted one is among them."""

    rows: KeyedJaggedTensor
    """One sample for each table: its rows, ascending."""
    places: list[Tensor]
    """For each table the places of the wanted rows, [wanted]."""


def lookup_once(tables: list[EmbeddingConfig], wanted: list[Tensor]) -> Lookup:
    """Each row of `tables` once that is among the `wanted` rows of each, which are int64 of any length."""
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
    return Lookup(KeyedJaggedTensor(keys=keys, values=row_U, lengths=count_F), places)


def mean_of_lists(rows_UD: Tensor, place_N: Tensor, lengths_T: Tensor) -> Tensor:
    """The mean of the rows at `place_N` of each of T lists, zeros for an empty one: [T, D]."""
    offsets = F.pad(lengths_T.cumsum(0), (1, 0))
    return F.embedding_bag(place_N, rows_UD, offsets, mode="mean", include_last_offset=True)


class Tables(nn.Module):
    """Holds the EmbeddingCollection of a model, on the meta device and without memory until `embeddings.sharding.shard`
    places it; TorchRec replaces `collection` by its sharded form.

    `features`: whether the model reads category features besides the item. `precision`: of the rows.
    """

    def __init__(
        self,
        manifest: Manifest,
        dimension: int,
        features: bool = True,
        precision: str = "fp32",
        collisions: Collisions | None = None,
    ) -> None:
        super().__init__()
        shared = {table: settings.size for table, settings in collisions.config.items()} if collisions else {}
        read = [feature for feature in manifest.features if features and not feature.is_number]
        rows = {ITEM: manifest.items} | {f.name: shared.get(f.name, f.size) for f in read}
        self.configs = [
            EmbeddingConfig(
                name=PREFIX + name,
                num_embeddings=size,
                embedding_dim=dimension,
                feature_names=[name],
                data_type=DataType.FP16 if precision == "fp16" else DataType.FP32,
            )
            for name, size in rows.items()
        ]
        self.collection = EmbeddingCollection(tables=self.configs, device=torch.device("meta"))
        self.collisions = collisions
        self.names = list(rows)
        self.spreads = {name: Spread(size) for name, size in rows.items() if name not in shared}
        """Where values lie that have a row of their own, by table."""
        self.lookups = dict.fromkeys(self.names, 0)
        """Different rows that this worker has looked up in training since it was last set to 0, by table."""

    def forward(self, batch: Batch, candidates_C: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Vectors of the inputs, each [T, D], and the item table's rows of the candidates, [C, D]."""
        values = [batch.item_T if name == ITEM else batch.features[name] for name in self.names]
        index = [value.values if isinstance(value, Lists) else value for value in values]
        index[0] = torch.cat([index[0], candidates_C])
        embedded, places = self._look_up(dict(zip(self.names, index, strict=True)))
        inputs_T, places_C = places[ITEM].split([batch.tokens, len(candidates_C)])
        vectors = {}
        for name, value in zip(self.names, values, strict=True):
            rows_UD, place = embedded[name].values(), inputs_T if name == ITEM else places[name]
            if isinstance(value, Lists):
                vectors[name] = mean_of_lists(rows_UD, place, value.lengths)
            else:
                vectors[name] = rows_UD.index_select(0, place)
        return vectors, embedded[ITEM].values().index_select(0, places_C)

    def _look_up(self, index: dict[str, Tensor]) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """The different rows of the values `index` of each table, and where each value's is among them."""
        lookup = lookup_once(self.configs, [self._rows(name, index[name]) for name in self.names])
        if self.training:
            for name, rows in zip(self.names, lookup.rows.length_per_key(), strict=True):
                self.lookups[name] += rows
        return self.collection(lookup.rows), dict(zip(self.names, lookup.places, strict=True))

    def _rows(self, table: str, index_N: Tensor) -> Tensor:
        """The rows that hold the values `index_N`."""
        if spread := self.spreads.get(table):
            return spread.rows(index_N)
        assert self.collisions is not None
        return self.collisions.rows(table, index_N, self.training)

    @torch.no_grad()
    def item_rows(self, index_C: Tensor) -> Tensor:
        """Rows of the items `index_C`, [C, D], wherever they are; every worker has to call it at the same time."""
        wanted = [self.spreads[ITEM].rows(index_C) if name == ITEM else index_C.new_empty(0) for name in self.names]
        lookup = lookup_once(self.configs, wanted)
        return self.collection(lookup.rows)[ITEM].values().detach().index_select(0, lookup.places[0])
