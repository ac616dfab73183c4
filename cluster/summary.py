"""What a run says at its end."""

from __future__ import annotations

import shlex

from cluster.config import Config
from cluster.results import RESULTS
from evaluation.results import Recommended, Results
from ingest.storage import join
from trainer.progress import Markers, Progress, differences

SHOWN_WARNINGS = 5


def print_training(config: Config, name: str, progress: Progress, without_effect: list[str]) -> None:
    """`without_effect`: what the config says otherwise than the checkpoint of a model that was trained before."""
    metric = config.train_config(name).metric
    print(f"model {name}: best validation {metric} {progress.best:.4f}, in {config.model_folder(name)}")
    if without_effect:
        print(f"model {name} was trained to its end before: {', '.join(without_effect)} has no effect on it; take "
              "another name for the run to train it anew")  # fmt: skip


def print_recommendations(config: Config, made: Recommended) -> None:
    left_out = f" (left out, for the log has them not: {made.unknown_users:,})" if made.unknown_users else ""
    print(f"recommendations of model {made.model} for {made.users:,} users{left_out}: {config.recommendations_folder}")


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
    print(f"TensorBoard  tensorboard --logdir {shlex.quote(join(config.folder, 'models'))}")


def without_effect(markers: Markers, name: str, ours: dict[str, dict[str, object]]) -> list[str]:
    """Keys of `train` in which the config is other than checkpoint `name`, as `key: ours (trained with theirs)`."""
    found = differences(markers.config(name), {"train": ours["train"]})
    return [f"{key}: {value} (it was {before})" for key, value, before in found]
