"""A baseline's settings, chosen on the validation split where its section gives several values of one.

Every combination ranks the validation targets, as a neural model does after each epoch; the best by the validation
metric, of equal ones the first, is evaluated on the test split. Memory holds one of them at a time.
"""

from __future__ import annotations

from evaluation.baselines.base import BaselineConfig, Prepared
from evaluation.evaluate import evaluate
from evaluation.model import Model
from evaluation.results import Chosen, Tried
from ingest.data.reader import Reader
from ingest.errors import InputError


def choose(model: Model, data: Prepared, filter_seen: bool) -> tuple[BaselineConfig, Chosen | None]:
    """The config with one value for each setting, and how it was chosen; every worker calls it.

    Raises `InputError` where there is something to choose, but no validation target.
    """
    config = model.config
    assert isinstance(config, BaselineConfig)
    if not config.several:
        return config, None
    if not data.manifest.shards["validation"]:
        keys = ", ".join(config.several)
        raise InputError(f"models.{model.name}: takes one value for {keys}: there is no validation target to choose by")
    candidates = config.candidates()
    tried = []
    for number, candidate in enumerate(candidates, 1):
        doing = f"validate {model.name} {number}/{len(candidates)}"
        value = _validated(candidate, model, data, filter_seen, doing)
        tried.append(Tried(settings={name: getattr(candidate, name) for name in config.several}, value=value))
    best = max(range(len(tried)), key=lambda number: tried[number].value)
    return candidates[best], Chosen(settings=tried[best].settings, metric=model.train.metric, tried=tried)


def _validated(config: BaselineConfig, model: Model, data: Prepared, filter_seen: bool, doing: str) -> float:
    """The validation metric of one combination."""
    worker, features = data.worker, config.reads_features
    reader = Reader(data.url, data.manifest, data.items, "validation", data.reader,
                    rank=worker.rank, workers=worker.workers, evaluate=True, features=features)  # fmt: skip
    found = evaluate(config.scorer(data), reader, worker, filter_seen, doing)
    data.skipped.extend(reader.skipped)
    return found.ranks.compute()[model.train.metric]
