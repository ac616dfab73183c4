"""Recommendations: for every user the best items of the whole catalogue, the predicted intents and their weights.

    user        the log's own id
    items       list: the log's own item ids, best first; fewer than `top` where the user has seen all others
    scores      list<float>: their scores
    intents     struct, a field an intent: list<struct<label, probability>> of what the next interaction is about
    attention   struct, a field an intent: its weight in the intent embedding; they sum to 1

`intents` and `attention` are there for models that have them. Every worker ranks its own users against the sharded
catalogue and writes one file.

Q  targets, one a user     K  items     L  labels of an intent     k  labels written
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from embeddings.workers import Worker
from evaluation.evaluate import in_step, shown
from evaluation.evaluation_config import RecommendConfig
from evaluation.ranking import CatalogueRanker, NeuralScorer
from ingest.arrays.jagged import offsets_of
from ingest.data.manifest import Manifest
from ingest.data.reader import Reader
from ingest.features.feature import FIRST_VALUE
from ingest.storage import arrow_filesystem, join, open_file

ROW_GROUP = 16_384
"""Users of a row group."""


@dataclass(frozen=True)
class Names:
    """The log's own item ids and the labels of every intent, by index; those of 0 and 1 are never written."""

    items: pa.Array
    labels: dict[str, pa.Array]

    @classmethod
    def load(cls, url: str, manifest: Manifest) -> Names:
        """From the vocabularies of the prepared data set in the folder `url`."""

        def values(name: str) -> pa.Array:
            filesystem, path = arrow_filesystem(join(url, "vocab", f"{name}.parquet"))
            return pq.read_table(path, filesystem=filesystem, columns=["value"])["value"].combine_chunks()

        return cls(values("item"), {feature.name: values(feature.name) for feature in manifest.intents})


def recommend(
    scorer: NeuralScorer,
    readers: list[Reader],
    worker: Worker,
    settings: RecommendConfig,
    filter_seen: bool,
    names: Names,
    url: str,
) -> int:
    """Write this worker's users to a file in the folder `url`, and return their number; all workers call it.

    `readers` are made with `after_last`; together they hold every user once. A worker without users writes no file.
    """
    manifest = readers[0].manifest
    ranker = CatalogueRanker(scorer, manifest.items, worker, filter_seen)
    written, waiting, tables = 0, 0, []
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in chain(_tables(scorer, ranker, readers, worker, settings, names), [None]):
            if table is not None:
                tables.append(table)
                waiting += table.num_rows
            if waiting and (waiting >= ROW_GROUP or table is None):
                whole = pa.concat_tables(tables)
                if writer is None:
                    file = stack.enter_context(open_file(join(url, f"part-{worker.rank:05d}.parquet"), "wb"))
                    writer = stack.enter_context(pq.ParquetWriter(file, whole.schema, compression="zstd"))
                writer.write_table(whole, row_group_size=waiting)
                written, waiting, tables = written + waiting, 0, []
    return written


def _tables(
    scorer: NeuralScorer,
    ranker: CatalogueRanker,
    readers: list[Reader],
    worker: Worker,
    settings: RecommendConfig,
    names: Names,
) -> Iterator[pa.Table]:
    kind = readers[0].source.user_type()
    parts = (
        shown(in_step(reader, worker), reader, worker, f"recommend, users of {reader.split}") for reader in readers
    )
    for batch in chain.from_iterable(parts):
        prediction = scorer.step.predict(batch)
        item_QK, score_QK = ranker.top(prediction.query_QD, batch.seen, settings.top)
        if not batch.rows:
            continue
        columns = {
            "user": pa.array([batch.users[row] for row in batch.row_Q.tolist()], type=kind),
            **_items(item_QK.cpu().numpy(), score_QK.cpu().numpy(), names.items),
        }
        if prediction.intents:
            labels = [
                _labels(logits, names.labels[name], settings.labels) for name, logits in prediction.intents.items()
            ]
            columns["intents"] = pa.StructArray.from_arrays(labels, names=list(prediction.intents))
        if prediction.attention_QM is not None:
            weights = [pa.array(weight_Q) for weight_Q in prediction.attention_QM.float().cpu().numpy().T]
            columns["attention"] = pa.StructArray.from_arrays(weights, names=list(prediction.intents))
        yield pa.table(columns)


def _items(item_QK: np.ndarray, score_QK: np.ndarray, ids: pa.Array) -> dict[str, pa.Array]:
    there_QK = item_QK >= FIRST_VALUE
    offsets = pa.array(offsets_of(there_QK.sum(axis=1)).astype(np.int32))
    return {
        "items": pa.ListArray.from_arrays(offsets, ids.take(pa.array(item_QK[there_QK]))),
        "scores": pa.ListArray.from_arrays(offsets, pa.array(score_QK[there_QK])),
    }


def _labels(logits_QL: Tensor, labels: pa.Array, count: int) -> pa.ListArray:
    """The likeliest labels of each target with their probabilities, the likeliest first."""
    probability_Qk, label_Qk = logits_QL.float().softmax(dim=1).topk(min(count, logits_QL.shape[1]), dim=1)
    index = pa.array((label_Qk + FIRST_VALUE).flatten().cpu().numpy())
    values = pa.StructArray.from_arrays(
        [labels.take(index), pa.array(probability_Qk.flatten().cpu().numpy())], names=["label", "probability"]
    )
    offsets = np.arange(len(logits_QL) + 1, dtype=np.int32) * label_Qk.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), values)
