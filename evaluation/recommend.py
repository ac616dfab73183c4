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
from itertools import chain

import numpy as np
import pyarrow as pa
from torch import Tensor

from embeddings.workers import Worker, gather_objects
from evaluation.evaluate import with_progress
from evaluation.evaluation_config import RecommendConfig
from evaluation.model import Model
from evaluation.parquet import part_writer
from evaluation.ranking import CatalogueRanker, Scorer
from evaluation.results import Recommended
from evaluation.vocabulary import values
from ingest.arrays.jagged import offsets_of
from ingest.data.items import load_items
from ingest.data.manifest import SplitName, load_manifest
from ingest.data.reader import Reader
from ingest.data.requests import read_requests
from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from trainer.candidates import Known

SPLITS: tuple[SplitName, ...] = ("test", "rest")
"""Together they hold every user once."""


def recommend_users(
    data: str,
    model: Model,
    settings: RecommendConfig,
    filter_seen: bool,
    folder: str,
    worker: Worker,
    log: DataConfig,
) -> Recommended:
    """Write what `model` recommends to every user of the prepared data set `data`, or to those who ask, to `folder`.

    All workers call it. `log`: how the log's columns, and so those of requests, are called.
    """
    manifest = load_manifest(data)
    items = load_items(data, manifest, counts=False)
    scorer, _ = model.restored(manifest, worker, Known(data, items))
    requests = read_requests(settings.requests, log, manifest, data) if settings.requests else None
    readers = [
        Reader(data, manifest, items, split, model.train.reader, rank=worker.rank, workers=worker.workers,
               after_last=True, moment=settings.milliseconds, requests=requests)
        for split in SPLITS
    ]  # fmt: skip
    users = sum(gather_objects(recommend(scorer, readers, worker, settings, filter_seen, folder)))
    unknown = 0 if requests is None else len(requests.time_N) - users
    if requests is not None and unknown and not users:
        example = next(iter(requests.place))
        raise InputError(
            f"{settings.requests}: the log has none of the {unknown:,} users in column {log.user!r}, such as "
            f"{example!r}; ids have to be of the log's type"
        )
    return Recommended(users=users, model=model.name, unknown_users=unknown)


def recommend(
    scorer: Scorer, readers: list[Reader], worker: Worker, settings: RecommendConfig, filter_seen: bool, url: str
) -> int:
    """Write this worker's users to a file in the folder `url`, and return their number; all workers call it.

    `readers` are made with `after_last`. A worker without users writes no file.
    """
    with part_writer(url, worker) as writer:
        for table in _tables(scorer, readers, worker, settings, filter_seen):
            writer.add(table, np.arange(len(table)), len(table))
        return writer.users


def _tables(
    scorer: Scorer, readers: list[Reader], worker: Worker, settings: RecommendConfig, filter_seen: bool
) -> Iterator[pa.Table]:
    manifest, source = readers[0].manifest, next(reader.source for reader in readers if reader.source.shards)
    url, user = source.url, source.user_type()
    ids = values(url, "item")
    names = {feature.name: values(url, feature.name) for feature in manifest.intents}
    ranker = CatalogueRanker(scorer, manifest.items, manifest.catalogue, worker, filter_seen)
    for batch in chain.from_iterable(
        with_progress(reader, worker, f"recommend, users of {reader.split}") for reader in readers
    ):
        prediction = scorer.predict(batch)
        item_QK, score_QK = ranker.top(prediction.query, batch.seen, settings.top)
        if not batch.rows:
            continue
        columns = {
            "user": pa.array([batch.users[row] for row in batch.row_Q.tolist()], type=user),
            **_items(item_QK.cpu().numpy(), score_QK.cpu().numpy(), ids),
        }
        if prediction.intents:
            labels = [_labels(logits, names[name], settings.labels) for name, logits in prediction.intents.items()]
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
