"""Feature tables: one TorchRec EmbeddingCollection for the items and every category feature.

    T  tokens      C  candidates (targets and negatives)      D  dimension, the same for all tables

The item table has two features: `item` (the inputs) and `candidates`, so that the output layer reads and trains the
very same rows, wherever they are sharded. All tokens of a feature travel as one sample of a KeyedJaggedTensor: tables
do not care about sequences, and the stride stays 1 on every worker however many users its batch has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType

from embeddings.collision import Collisions
from embeddings.config import ITEM
from ingest import batch as ingest_batch
from ingest.batch import Batch
from ingest.manifest import Manifest

CANDIDATES = "candidates"


def build_tables(
    manifest: Manifest,
    dimension: int,
    features: bool = True,
    precision: str = "fp32",
    sizes: Mapping[str, int] | None = None,
) -> EmbeddingCollection:
    """The tables on the meta device: no memory until `embeddings.sharding.shard` places them.

    `features`: whether the model reads category features besides the item. `precision`: of the rows.
    `sizes`: rows of features' tables that are other than their vocabularies.
    """
    data_type = DataType.FP16 if precision == "fp16" else DataType.FP32
    tables = [
        EmbeddingConfig(
            name=ITEM,
            num_embeddings=manifest.items,
            embedding_dim=dimension,
            feature_names=[ITEM, CANDIDATES],
            data_type=data_type,
        )
    ]
    if features:
        tables += [
            EmbeddingConfig(
                name=feature.name,
                num_embeddings=(sizes or {}).get(feature.name, feature.size),
                embedding_dim=dimension,
                feature_names=[feature.name],
                data_type=data_type,
            )
            for feature in manifest.features
            if not feature.is_number
        ]
    return EmbeddingCollection(tables=tables, device=torch.device("meta"))


def lookup_keys(manifest: Manifest, features: bool = True) -> list[str]:
    """The features that `build_tables` knows, in the order of its tables."""
    names = [feature.name for feature in manifest.features if not feature.is_number] if features else []
    return [ITEM, CANDIDATES, *names]


def expected_lookups(keys: list[str], tokens: int, candidates: int) -> dict[str, float]:
    """Rows of each table that a batch of `tokens` looks up, by table; a list of values counts as one."""
    found = {key: float(tokens) for key in keys if key != CANDIDATES}
    found[ITEM] += candidates
    return found


def indices(keys: list[str], batch: Batch | None, candidates_C: Tensor) -> list[Tensor]:
    """What to look up of each key for `batch` (nothing where None) and for `candidates_C`."""
    parts = []
    for key in keys:
        if key == CANDIDATES:
            parts.append(candidates_C)
        elif batch is None:
            parts.append(candidates_C.new_empty(0))
        elif key == ITEM:
            parts.append(batch.item_T)
        else:
            value = batch.features[key]
            parts.append(value.values if isinstance(value, ingest_batch.JaggedTensor) else value)
    return parts


def lookup(keys: list[str], parts: list[Tensor]) -> KeyedJaggedTensor:
    """The indices `parts` of each key as one sample for each key."""
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64, device=parts[0].device)
    return KeyedJaggedTensor(keys=keys, values=torch.cat(parts), lengths=lengths)


def pooled(batch: Batch, embedded: dict[str, JaggedTensor], keys: list[str]) -> dict[str, Tensor]:
    """The looked-up rows of `item` and of every feature as [T, D]: features of several values as their mean."""
    vectors = {}
    for key in keys:
        if key == CANDIDATES:
            continue
        rows_ND = embedded[key].values()
        value = None if key == ITEM else batch.features[key]
        if isinstance(value, ingest_batch.JaggedTensor):
            summed_TD = torch.segment_reduce(rows_ND, "sum", lengths=value.lengths, axis=0, unsafe=True)
            rows_ND = summed_TD / value.lengths.clamp(min=1).unsqueeze(1)
        vectors[key] = rows_ND
    return vectors


class Tables(nn.Module):
    """Holds the EmbeddingCollection of a model; TorchRec replaces `collection` by its sharded form."""

    def __init__(
        self,
        manifest: Manifest,
        dimension: int,
        features: bool = True,
        precision: str = "fp32",
        collisions: Collisions | None = None,
    ) -> None:
        super().__init__()
        self.keys = lookup_keys(manifest, features)
        sizes = {table: settings.size for table, settings in collisions.config.items()} if collisions else {}
        self.collection = build_tables(manifest, dimension, features, precision, sizes)
        self.collisions = collisions
        self.lookups = dict.fromkeys(self.names, 0)
        """Rows that this worker has looked up in training since it was last set to 0, by table."""
        self.configs: list[EmbeddingConfig] = list(self.collection.embedding_configs())

    @property
    def names(self) -> list[str]:
        """The tables' names."""
        return [key for key in self.keys if key != CANDIDATES]

    def forward(self, batch: Batch, candidates_C: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Vectors of the inputs, each [T, D], and the item table's rows of the candidates, [C, D]."""
        parts = indices(self.keys, batch, candidates_C)
        if self.training:
            for key, part in zip(self.keys, parts, strict=True):
                self.lookups[ITEM if key == CANDIDATES else key] += len(part)
        embedded = self.collection(lookup(self.keys, self._rows(parts)))
        return pooled(batch, embedded, self.keys), embedded[CANDIDATES].values()

    def _rows(self, parts: list[Tensor]) -> list[Tensor]:
        """The rows that hold the values `parts` of each key."""
        if self.collisions is None:
            return parts
        mapped = self.collisions.modules
        return [
            self.collisions.rows(key, part, self.training) if key in mapped else part
            for key, part in zip(self.keys, parts, strict=True)
        ]

    @torch.no_grad()
    def item_rows(self, index_C: Tensor) -> Tensor:
        """Rows of the item table, [C, D], wherever they are; every worker has to call it at the same time."""
        rows: Tensor = self.collection(lookup(self.keys, indices(self.keys, None, index_C)))[CANDIDATES].values()
        return rows.detach()
