"""This project's SASRec against RecTools' on the same sequences, in turns of a part of an epoch each. Prints JSON.

    make bench-peers ML1M=FOLDER OPTIONS="--users 700 --epochs 3 train.reader.tokens=2048"

RecTools runs in an environment of its own, as a process that is driven over pipes and stands still while we train.
Both have 64 dimensions, 2 blocks, 2 heads, feed-forward layers of 64, the last 201 interactions of each user and a
sampled softmax: 256 negatives for each place there, for each batch here. Targets are real next items, no padding; a
side's clock runs while it trains, its reading or collating included, and stands while it starts, prepares and
validates. Validation loss is the same for both: -log softmax over the whole catalogue of each user's held-out item,
averaged over the users whose item both know.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import torch

from benchmarks.training import Case, Training, header, prepared, ratio_of
from embeddings.workers import Worker, single_process
from evaluation.ranking import NeuralScorer
from ingest.data.manifest import SplitName, load_manifest
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join

ROOT = Path(__file__).resolve().parents[1]
DIMENSION, LENGTH, NEGATIVES = 64, 200, 256
TURNS = 4  # of an epoch
WARM_UP = 3  # steps of either side that count for nothing
OVERRIDES = [
    "models.sasrec={kind: sasrec, layers: 2, heads: 2, dropout: 0.2, expansion: 1}",
    f"train.loss={{kind: sampled, negatives: {NEGATIVES}}}",
    f"train.tables.dimension={DIMENSION}",
    f"train.reader.max_length={LENGTH}",
    "train.reader.windows=false",  # RecTools' has the last ones alone
]
"""Laid over the config before what the command line says."""
Turn = Callable[[int | None], dict[str, Any]]
"""Takes so many steps, None for the rest of the epoch: `seconds`, `targets`, at an epoch's end `losses` by user."""


@contextmanager
def rectools(folder: Path, threads: int, epochs: int) -> Iterator[tuple[int, Turn]]:
    """Steps of an epoch, and turns of RecTools on the data in `folder`, where what it writes of itself goes, too."""
    arguments = {"data": folder, "threads": threads, "epochs": epochs}
    arguments |= {"dimension": DIMENSION, "length": LENGTH, "negatives": NEGATIVES, "warm-up": WARM_UP}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    command = [str(ROOT / ".venv-peers/bin/python"), "-W", "ignore", "-m", "benchmarks.peer_rectools", *words]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as process:
        assert process.stdin is not None

        def line() -> dict[str, Any]:
            text = process.stdout.readline()  # type: ignore[union-attr]
            if not text:
                sys.exit(f"{command} ended with status {process.wait()}")
            return dict(json.loads(text))

        def turn(steps: int | None) -> dict[str, Any]:
            print(json.dumps({"steps": steps}), file=process.stdin, flush=True)
            return line()

        yield line()["steps"], turn
        process.stdin.close()


@contextmanager
def ours(case: Case) -> Iterator[tuple[int, Turn]]:
    """The same of our step over the reader's batches, as the trainer takes them."""
    with single_process(torch.device("cpu")):
        worker = Worker()
        reader, held_out = case.reader(worker), case.reader(worker, "validation", evaluate=True)
        training = Training(case.step(worker), ())
        epoch = 0
        inside = False

        def turn(steps: int | None) -> dict[str, Any]:
            nonlocal epoch, inside
            training.targets, began, taken = 0, time.perf_counter(), 0
            if not inside:
                training.batches, inside = (batch for batch, _ in reader.epoch(epoch)), True
            while steps is None or taken < steps:
                try:
                    training.take()
                except StopIteration:
                    epoch, inside = epoch + 1, False
                    break
                taken += 1
                if training.number <= WARM_UP:
                    training.targets, began = 0, time.perf_counter()
            result: dict[str, Any] = {"seconds": time.perf_counter() - began, "targets": training.targets}
            return result if inside else result | {"losses": validation_losses(training.step, held_out)}

        yield sum(1 for _ in reader.epoch(0)), turn


def validation_losses(step: Any, reader: Any) -> dict[str, float]:
    """-log softmax over the whole catalogue of each user's held-out item, of users whose item is known."""
    scorer, losses = NeuralScorer(step), dict[str, float]()
    for batch, _ in reader.epoch(0):
        scores_QV = scorer.scores(scorer.predict(batch).query)
        scores_QV[:, :FIRST_VALUE] = -torch.inf
        row_Q = scorer.item_to_row(batch.in_table(batch.target_Q))
        loss_Q = torch.nn.functional.cross_entropy(scores_QV, row_Q, reduction="none")
        users = [batch.users[row] for row in batch.row_Q.tolist()]
        known = zip(users, loss_Q.tolist(), batch.known_Q.tolist(), strict=True)
        losses.update({str(user): loss for user, loss, is_known in known if is_known})
    return losses


def export(data: str, folder: Path) -> None:
    """The prepared data set's training histories and held-out items as CSV: users, item indices, places."""

    manifest = load_manifest(data)

    def read(split: SplitName) -> pl.DataFrame:
        paths = [join(data, shard.path) for shard in manifest.shards[split]]
        return pl.concat([pl.read_parquet(path, columns=["user", "item"]) for path in paths])

    position = pl.int_range(pl.len()).over("user").alias("position")
    read("train").explode("item").with_columns(position).write_csv(folder / "train.csv")
    held_out = read("validation").with_columns(pl.col("item").list.last())
    held_out.filter(pl.col("item").is_between(FIRST_VALUE, manifest.items - 1)).write_csv(folder / "validation.csv")


@contextmanager
def subset(source: Path, users: int | None) -> Iterator[Path]:
    """The source of the import, or a copy of it that has only the users with the `users` lowest ids."""
    if users is None:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in source.glob("*.parquet"):
            table = pl.read_parquet(path)
            if path.name == "interactions.parquet":
                table = table.filter(pl.col("user_id").is_in(table["user_id"].unique().sort()[:users].to_list()))
            table.write_parquet(Path(folder, path.name))
        yield Path(folder)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        source = stack.enter_context(subset(options.source, options.users))
        config = stack.enter_context(
            prepared("configs/ml-1m.yaml", [f"import.source={source}", *OVERRIDES, *options.words])
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export(config.data_folder, folder)
        case = Case.of(config, "sasrec")
        sides = {
            "ours": stack.enter_context(ours(case)),
            "rectools": stack.enter_context(rectools(folder, options.threads, options.epochs)),
        }
        found = _compared(sides, options)
    tables = case.train.tables
    return {
        "threads": options.threads,
        "users": options.users or "all",
        "epochs": options.epochs,
        "tokens": case.train.reader.tokens,
        "optimizer": f"AdamW {case.train.learning_rate}; tables {tables.optimizer} {tables.learning_rate}",
        **found,
    }


def _compared(sides: dict[str, tuple[int, Turn]], options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(options.epochs * TURNS):
        ends_epoch = (number + 1) % TURNS == 0
        for name, (steps, turn) in sides.items():
            found = turn(None if ends_epoch else max(1, steps // TURNS))
            rates[name].append(found["targets"] / max(found["seconds"], 1e-9))
            if "losses" in found:
                losses[name].append(found["losses"])
            print(f"turn {number + 1}, {name}: {rates[name][-1]:,.0f} targets/s", file=sys.stderr, flush=True)
    timed = [place for place in range(len(rates["ours"])) if all(rates[name][place] for name in sides)]
    rates = {name: [found[place] for place in timed] for name, found in rates.items()}
    common = set.intersection(*(set(each[0]) for each in losses.values()))
    curves = {
        name: [round(statistics.mean(part[user] for user in common), 4) for part in each]
        for name, each in losses.items()
    }
    return {
        "steps_an_epoch": {name: steps for name, (steps, _) in sides.items()},
        "targets_per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "times_the_peer": ratio_of(rates["ours"], rates["rectools"]),
        "validation_users": len(common),
        "validation_loss": curves,
        "loss_less_the_peers": [round(a - b, 4) for a, b in zip(curves["ours"], curves["rectools"], strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="laid over the config")
    parser.add_argument(
        "--source", type=Path, default=Path("data/ml-1m"), help="MovieLens 1M: see the head of configs/ml-1m.yaml"
    )
    parser.add_argument("--users", type=int, help="only so many")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(header("peers") | measure(options), indent=1))


if __name__ == "__main__":
    main()
