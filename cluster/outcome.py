"""What a run leaves and says at its end: results.json with the run's own facts, and lines for the terminal."""

from __future__ import annotations

import datetime
import os
import platform
import sys

from cluster.config import Config
from evaluation.results import Evaluated, Recommended, Results
from ingest.data.manifest import load_manifest
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join
from trainer.progress import Markers, Progress, differences
from trainer.versions import installed

RESULTS, REPORT = "results.json", "report/index.html"
SHOWN_WARNINGS = 5


def results_of(config: Config, found: Evaluated, fingerprint: str, seconds: dict[str, float]) -> Results:
    """The evaluation with the data's counts, this machine, the command and the seconds of each stage."""
    manifest = load_manifest(config.data_folder)
    return Results(
        name=config.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        protocol=found.protocol,
        models=found.models,
        command=" ".join(["intentrec", *sys.argv[1:]]),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        versions={name: installed(name) or "" for name in ("torch", "torchrec", "ray", "pyarrow")},
        majority=found.majority,
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


def print_training(config: Config, name: str, progress: Progress, without_effect: list[str]) -> None:
    """`without_effect`: what the config says otherwise than the checkpoint of a model that was trained before."""
    metric = config.train_config(name).metric
    print(f"model {name}: best validation {metric} {progress.best:.4f}, in {config.model_folder(name)}")
    if without_effect:
        print(f"model {name} was trained to its end before: {', '.join(without_effect)} has no effect on it; take "
              "another name for the run to train it anew")  # fmt: skip


def print_recommendations(config: Config, made: Recommended) -> None:
    print(f"recommendations of model {made.model} for {made.users:,} users: {config.recommendations_folder}")


def print_results(config: Config, results: Results) -> None:
    """Write results.json and the report, and print the table."""
    from evaluation.report import format_table, write_report

    page = write_report(results, config.folder)
    print(f"\n{format_table(results)}\n")
    warnings = results.data.get("warnings", [])
    assert isinstance(warnings, list)
    for warning in warnings[:SHOWN_WARNINGS]:
        print(f"warning      {warning}")
    if len(warnings) > SHOWN_WARNINGS:
        print(f"warning      ... and {len(warnings) - SHOWN_WARNINGS} more, in the report")
    print(f"results      {join(config.folder, RESULTS)}")
    print(f"report       {page}")
    print(f"targets      {config.targets_folder}")
    print(f"TensorBoard  tensorboard --logdir {join(config.folder, 'models')}")


def without_effect(markers: Markers, name: str, ours: dict[str, dict[str, object]]) -> list[str]:
    """Keys of `train` in which the config is other than checkpoint `name`, as `key: ours (trained with theirs)`."""
    found = differences(markers.config(name), {"train": ours["train"]})
    return [f"{key}: {value} (it was {before})" for key, value, before in found]
