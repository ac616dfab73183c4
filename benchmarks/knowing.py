"""What it costs that scores know more: a step, and ranking the catalogue, with each part and with all, against none.

    python -m benchmarks.knowing [CONFIG] [key=value ...] [--model intentrec] [--rounds 5]

CONFIG as in benchmarks.train, with its longer batches. The variants take turns in one run; ratios are medians over the
rounds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any, get_args

import torch

from benchmarks.train import LONGER
from benchmarks.training import Case, Training, header, in_turns, prepared, ratio_of
from embeddings.workers import Worker, single_process
from evaluation.ranking import CatalogueRanker, NeuralScorer
from ingest.data.batch import Batch
from ingest.features.feature import dated
from trainer.models.registry import Knowledge


def variants(case: Case) -> dict[str, Case]:
    """The model without any part, with each one and with all that its log allows."""
    timeless, manifest = ("history", "attributes", "intents"), case.manifest
    parts = [part for part in get_args(Knowledge) if manifest.time_unit == "time" or part in timeless]
    lacking = {"age": dated(manifest.features), "attributes": manifest.attributes, "intents": manifest.intents}
    parts = [part for part in parts if lacking.get(part, True)]
    wanted = {"none": [], **{part: [part] for part in parts}, "all": parts}
    return {name: replace(case, model=case.model.model_copy(update={"knows": knows})) for name, knows in wanted.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with prepared(options.config, [*LONGER, *options.overrides]) as config, single_process(torch.device("cpu")):
        worker = Worker()
        case = Case.of(config, options.model)
        batches = case.batches(options.batches, worker)
        test = [batch for batch, _ in islice(case.reader(worker, "test", evaluate=True).epoch(0), options.batches)]
        steps: dict[str, Callable[[], float]] = {}
        ranks: dict[str, Callable[[], float]] = {}
        for name, variant in variants(case).items():
            step = variant.step(worker)
            training = Training(step, cycle(batches))
            steps[name] = partial(summed, training, len(batches))
            ranks[name] = partial(ranking_seconds, step, test, config.evaluate.filter_seen)
        found = {"step": in_turns(options.rounds, steps), "ranking": in_turns(options.rounds, ranks)}
    return {
        "model": options.model,
        "threads": torch.get_num_threads(),
        "items": case.manifest.items,
        "tokens_a_batch": sum(batch.tokens for batch in batches) / len(batches),
        "test_targets": sum(len(batch.target_Q) for batch in test),
        "ratio_to_none": {
            what: {name: ratio_of(each, sides["none"]) for name, each in sides.items() if name != "none"}
            for what, sides in found.items()
        },
        "seconds_of_none": {what: round(min(sides["none"]), 3) for what, sides in found.items()},
    }


def summed(training: Training, steps: int) -> float:
    return sum(training.seconds(steps))


def ranker_of(step: Any, filter_seen: bool) -> CatalogueRanker:
    manifest, worker = step.manifest, step.worker
    return CatalogueRanker(NeuralScorer(step), manifest.items, manifest.catalogue, worker, filter_seen)


def ranking_seconds(step: Any, batches: list[Batch], filter_seen: bool, ranker: CatalogueRanker | None = None) -> float:
    """What ranking the targets of `batches` takes, and making a `ranker` where none is given."""
    began = time.perf_counter()
    ranker = ranker or ranker_of(step, filter_seen)
    for batch in batches:
        ranker.ranks(ranker.scorer.predict(batch).query, batch.target_Q, batch.seen)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", default="intentrec")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(header("knowing") | measure(options), indent=1))


if __name__ == "__main__":
    main()
