"""Feature tables: one TorchRec EmbeddingCollection for the items and every category feature.

    T  tokens      C  candidates (targets and negatives)      D  dimension, the same for all tables

Inputs and candidates of the item table are one feature, so that the output layer reads and trains the very same rows,
wherever they are sharded. A worker asks for each row once in a step, however often the row is needed: what travels are
different rows, and the sums of their gradients. All rows of a table travel as one sample of a KeyedJaggedTensor: tables
do not care about sequences, and the stride stays 1 on every worker however many users its batch has.
"""

from __future__ import annotations

from itertools import accumulate

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


def expected_lookups(tables: list[EmbeddingConfig], tokens: int, candidates: int) -> dict[str, float]:
    """Rows of each table that a batch of `tokens` looks up, were they all different; a list of values counts as one."""
    rows = {table.feature_names[0]: table.num_embeddings for table in tables}
    return {name: float(min(tokens + (candidates if name == ITEM else 0), size)) for name, size in rows.items()}


def lookup_once(tables: list[EmbeddingConfig], wanted: list[Tensor]) -> tuple[KeyedJaggedTensor, list[Tensor]]:
    """The different rows among the `wanted` ones of each table, int64 of any length, and where each is among them.

    A table's rows are one sample of the KeyedJaggedTensor, ascending.
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
    return KeyedJaggedTensor(keys=keys, values=row_U, lengths=count_F), places


def mean_of_lists(rows_UD: Tensor, place_N: Tensor, lengths_T: Tensor) -> Tensor:
    """The mean of the rows at `place_N` of each of T lists, zeros for an empty one: [T, D]."""
    offsets = F.pad(lengths_T.cumsum(0), (1, 0))
    return F.embedding_bag(place_N, rows_UD, offsets, mode="mean", include_last_offset=True)


class Tables(nn.Module):
    """Holds the EmbeddingCollection of a model, on the meta device and without memory until `embeddings.sharding.shard`
    places it; TorchRec replaces `collection` by its sharded form. Items that training does not know share one row.

    `features`: whether the model reads category features besides the item; `request`: and what is known of the next
    interaction's when it is requested. `seed`: of rows that evicted values had.
    """

    def __init__(
        self, manifest: Manifest, config: TableConfig, features: bool, seed: int, request: bool = False
    ) -> None:
        super().__init__()
        self.collisions = Collisions(config.zch, config.dimension, config.initial_deviation, seed)
        shared = {table: settings.size for table, settings in config.zch.items()}
        read = [feature for feature in manifest.features if features and not feature.is_number]
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
        self.requested = [feature.name for feature in read if request and feature.at_request]
        self.spreads = {name: Spread(size) for name, size in rows.items() if name not in shared}
        """Where values lie that have a row of their own, by table."""
        self.lookups = dict.fromkeys(self.names, 0)
        """Different rows that this worker has looked up in training since it was last set to 0, by table."""

    def forward(self, batch: Batch, candidates_C: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Vectors of the inputs and of the request's features, each [T, D], and the candidates' item rows, [C, D]."""
        values = {name: batch.item_T if name == ITEM else batch.features[name] for name in self.names}
        index = {name: value.values if isinstance(value, Lists) else value for name, value in values.items()}
        index[ITEM] = torch.cat([batch.in_table(index[ITEM]), candidates_C])
        for name in self.requested:
            index[name] = torch.cat([index[name], batch.request[name]])
        rows, places = lookup_once(self.configs, [self._rows(name, index_N) for name, index_N in index.items()])
        if self.training:
            for name, count in zip(self.names, rows.length_per_key(), strict=True):
                self.lookups[name] += count
        embedded = {name: rows_U.values() for name, rows_U in self.collection(rows).items()}
        vectors, request = {}, {}
        for (name, value), place_N in zip(values.items(), places, strict=True):
            if isinstance(value, Lists):
                vectors[name] = mean_of_lists(embedded[name], place_N, value.lengths)
            else:
                vectors[name] = embedded[name].index_select(0, place_N[: batch.tokens])
            if name in self.requested:
                request[name] = embedded[name].index_select(0, place_N[batch.tokens :])
        return vectors, request, embedded[ITEM].index_select(0, places[0][batch.tokens :])

    def _rows(self, table: str, index_N: Tensor) -> Tensor:
        """The rows that hold the values `index_N`."""
        spread = self.spreads.get(table)
        return spread.rows(index_N) if spread else self.collisions.rows(table, index_N, self.training)

    @torch.no_grad()
    def item_rows(self, index_C: Tensor) -> Tensor:
        """Rows of the items `index_C`, [C, D], wherever they are; every worker has to call it at the same time."""
        wanted = [self.spreads[ITEM].rows(index_C) if name == ITEM else index_C.new_empty(0) for name in self.names]
        rows, places = lookup_once(self.configs, wanted)
        return self.collection(rows)[ITEM].values().detach().index_select(0, places[0])
