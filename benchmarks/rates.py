"""Validation of a model by the learning rate of its tables and the deviation of their first rows: why the defaults."""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack, suppress
from typing import Any

import torch

from benchmarks.peers import subset, validation_losses
from benchmarks.scaling import Stream
from benchmarks.training import Case, prepared
from cluster.config import Config
from embeddings.workers import Worker, single_process
from evaluation.evaluate import validate


def measure_rates(options: argparse.Namespace) -> dict[str, Any]:
    """Validation loss over the whole catalogue and MRR after each epoch, by the tables' settings."""
    with ExitStack() as stack:
        source = stack.enter_context(subset(options.source, options.users)) if options.source else None
        overrides = [*([f"import.source={source}"] if source else []), *options.overrides]
        config = stack.enter_context(prepared(options.config, overrides))
        stack.enter_context(single_process(torch.device("cpu")))
        found = [
            {"learning_rate": rate, "initial_deviation": deviation} | _curves(config, options, rate, deviation)
            for deviation in options.deviations
            for rate in options.rates
        ]
        case = Case.of(config, options.model)
    return {
        "model": options.model,
        "users": options.users or "all",
        "items": case.manifest.items,
        "loss": case.train.loss.model_dump(include={"kind", "negatives", "sampling"}),
        "tokens": case.train.reader.tokens,
        "learning_rate": case.train.learning_rate,
        "tables": found,
    }


def _curves(config: Config, options: argparse.Namespace, rate: float, deviation: float) -> dict[str, list[float]]:
    content = config.model_dump(mode="json", by_alias=True)
    content["train"]["tables"] |= {"learning_rate": rate, "initial_deviation": deviation}
    case, worker = Case.of(Config.model_validate(content), options.model), Worker()
    reader, held_out = case.reader(worker), case.reader(worker, "validation", evaluate=True)
    training = Stream(case.step(worker), iter(()))
    curves: dict[str, list[float]] = {"loss": [], "MRR": []}
    for epoch in range(options.epochs):
        training.batches = (batch for batch, _ in reader.epoch(epoch))
        with suppress(StopIteration):
            while True:
                training.take()
        losses = validation_losses(training.step, held_out)
        curves["loss"].append(round(statistics.mean(losses.values()), 4))
        metrics = validate(training.step, held_out, worker, config.evaluate.filter_seen).metrics
        curves["MRR"].append(round(metrics["MRR"], 4))
        print(f"{options.model}, {rate}, {deviation}, epoch {epoch + 1}: {curves}", file=sys.stderr, flush=True)
    return curves
