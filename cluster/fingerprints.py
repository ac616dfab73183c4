"""What a stage's outcome depends on: where config, data and best checkpoints have the same fingerprint, it is there."""

from __future__ import annotations

import hashlib
import json

from cluster.config import Config
from ingest.data.manifest import load_manifest
from ingest.raw.files import find_files
from trainer.progress import Markers


def of_evaluation(config: Config) -> str:
    return _fingerprint(config, list(config.models))


def of_recommendations(config: Config, model: str) -> str:
    settings = config.recommend
    asked = find_files(settings.requests, lambda _: None) if settings and settings.requests else {}
    return _fingerprint(config, [model], f"{settings.model_dump_json()}{asked}" if settings else "")


def _fingerprint(config: Config, models: list[str], section: str = "") -> str:
    train = config.train  # of which baselines have their metric, comparisons their seed, histories their length
    parts = [section, config.evaluate.model_dump_json(), load_manifest(config.data_folder).fingerprint]
    parts += [train.metric, str(train.seed), train.reader.model_dump_json()]
    for name in models:
        parts += [name, config.models[name].model_dump_json()]
        if name in config.neural:
            markers = Markers(config.checkpoints(name))
            best = markers.best()
            parts += [best or "", *markers.complete(), json.dumps(markers.marker(best)) if best else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
