"""results.json: what the evaluation found, with the run's own facts."""

from __future__ import annotations

import datetime
import sys

from cluster.config import Config
from evaluation.results import Evaluated, Results
from ingest.data.manifest import load_manifest
from ingest.features.feature import FIRST_VALUE
from trainer.versions import installed

RESULTS, REPORT = "results.json", "report/index.html"


def results_of(config: Config, found: Evaluated, fingerprint: str, seconds: dict[str, float]) -> Results:
    """The evaluation with the data's counts, this machine, the command and the seconds of each stage."""
    manifest = load_manifest(config.data_folder)
    return Results(
        name=config.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol=found.protocol,
        models=found.models,
        command=" ".join(["intentrec", *sys.argv[1:]]),
        machine=found.machine,
        versions={name: installed(name) or "" for name in ("torch", "torchrec", "ray", "pyarrow")},
        majority=found.majority,
        simple=found.simple,
        segments=found.segments,
        example=found.example,
        data={
            "users": manifest.counts["users"],
            "items": manifest.items - FIRST_VALUE,
            "events": manifest.counts["events"],
            "counts": {name: value for name, value in manifest.counts.items() if value},
            "fingerprint": fingerprint,
            "warnings": [*manifest.warnings, *found.warnings],
        },
        config=config.text(),
        seconds=seconds,
    )
