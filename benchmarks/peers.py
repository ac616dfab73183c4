"""This project's SASRec against RecTools' and RecBole's on the same sequences, in turns of a part of an epoch each.

The peers run in an environment of their own (`make bench-peers`), each a process that is driven over pipes and stands
still while another trains. Targets are real next items, no padding; a side's clock runs while it trains, its reading or
collating included, and stands while it starts, prepares and validates (benchmarks/peer_turns.py). Validation loss is
the same for all: -log softmax over the whole catalogue of each user's held-out item, averaged over the users whose item
all sides know.

RecTools keeps the last `length` + 1 interactions of a user, and so does its counterpart here; RecBole has every target
once, and so has its counterpart, with windows. Feed-forward layers are as wide as the peer's.
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
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from benchmarks.groups import Group
from benchmarks.peer_turns import WARM_UP
from benchmarks.scaling import Stream
from benchmarks.training import Case, prepared, ratio_of
from cluster.config import Config
from embeddings.workers import Worker
from evaluation.ranking import NeuralScorer
from ingest.data.manifest import SplitName, load_manifest
from ingest.features.feature import FIRST_VALUE
from ingest.storage import join

ROOT = Path(__file__).resolve().parents[1]


class Side(Protocol):
    """One of those that are compared."""

    facts: dict[str, Any]
    """`steps` of an epoch, `items` it scores, and what is to be said of it."""

    def close(self) -> None: ...

    def turn(self, steps: int | None) -> dict[str, Any]:
        """Take `steps` steps, None for the rest of the epoch: `seconds`, `targets`, at an epoch's end `losses`."""
        ...


class Peer:
    """A driver script in the peers' environment."""

    def __init__(self, python: Path, module: str, folder: Path, arguments: dict[str, Any], **facts: Any) -> None:
        """`folder` holds the data; what the peer writes of itself goes there, too."""
        arguments = {"data": folder} | arguments
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen(
            [str(python.absolute()), "-W", "ignore", "-m", module, *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = facts | self._line()

    def turn(self, steps: int | None) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps({"steps": steps}), file=self.process.stdin, flush=True)
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args!r} ended with status {self.process.wait()}")
        content: dict[str, Any] = json.loads(line)
        return content

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


class Ours:
    """The project's step over the reader's batches, as the trainer takes it, in a process of its own."""

    def __init__(self, config: dict[str, Any], threads: int, **facts: Any) -> None:
        self.group = Group(1, threads, _own, config=config)
        self.facts = facts | self.group.call(steps=0)[0]

    def turn(self, steps: int | None) -> dict[str, Any]:
        found: dict[str, Any] = self.group.call(steps=steps)[0]
        return found

    def close(self) -> None:
        self.group.close()


def _own(worker: Worker, config: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    case = Case.of(Config.model_validate(config), "sasrec")
    reader, held_out = case.reader(worker), case.reader(worker, "validation", evaluate=True)
    steps = sum(1 for _ in reader.epoch(0))
    training = Stream(case.step(worker), iter(()))
    epochs = iter(range(1_000_000))
    inside = False

    def call(steps: int | None) -> dict[str, Any]:
        nonlocal inside
        if steps == 0:
            return facts
        training.targets, began, taken, ended = 0, time.perf_counter(), 0, False
        if not inside:
            training.batches, inside = (batch for batch, _ in reader.epoch(next(epochs))), True
        while steps is None or taken < steps:
            try:
                training.take()
            except StopIteration:
                ended = True
                break
            taken += 1
            if training.number <= WARM_UP:
                training.targets, began = 0, time.perf_counter()
        result: dict[str, Any] = {"seconds": time.perf_counter() - began, "targets": training.targets}
        if ended:
            inside = False
            result["losses"] = validation_losses(training.step, held_out)
        return result

    facts = {"steps": steps, "items": case.manifest.items - FIRST_VALUE}
    return call


def validation_losses(step: Any, reader: Any) -> dict[str, float]:
    """-log softmax over the whole catalogue of each user's held-out item, of users whose item is known."""
    scorer, losses = NeuralScorer(step), dict[str, float]()
    for batch, _ in reader.epoch(0):
        scores_QV = scorer.scores(scorer.queries(batch))
        scores_QV[:, :FIRST_VALUE] = -torch.inf
        loss_Q = torch.nn.functional.cross_entropy(scores_QV, scorer.item_to_row(batch.target_Q), reduction="none")
        users = [batch.users[row] for row in batch.row_Q.tolist()]
        known_Q = (batch.target_Q >= FIRST_VALUE).tolist()
        losses.update({str(u): x for u, x, known in zip(users, loss_Q.tolist(), known_Q, strict=True) if known})
    return losses


def export(data: str, folder: Path) -> None:
    """The prepared data set's training histories and held-out items as CSV: users, item indices, places."""

    def read(split: SplitName) -> pa.Table:
        shards = load_manifest(data).shards[split]
        return pa.concat_tables(pq.read_table(join(data, shard.path), columns=["user", "item"]) for shard in shards)

    train, held_out = read("train"), read("validation")
    item = train["item"].combine_chunks()
    parents = pc.list_parent_indices(item)
    position = pc.subtract(pa.array(range(len(parents))), item.offsets.cast(pa.int64()).take(parents))
    flat = pa.table({"user": train["user"].take(parents), "item": pc.list_flatten(item), "position": position})
    pyarrow.csv.write_csv(flat, folder / "train.csv")
    lists = held_out["item"].combine_chunks()
    last = lists.values.take(pc.subtract(lists.offsets[1:], 1))
    known = pa.table({"user": held_out["user"], "item": last})
    pyarrow.csv.write_csv(known.filter(pc.greater_equal(known["item"], FIRST_VALUE)), folder / "validation.csv")


@contextmanager
def subset(source: str, users: int | None) -> Iterator[str]:
    """The source of the import, or a copy of it that has only the users with the `users` lowest ids."""
    if users is None:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(source).glob("*.parquet"):
            table = pq.read_table(path)
            if path.name == "interactions.parquet":
                chosen = pc.unique(table["user_id"]).sort()[:users]
                table = table.filter(pc.is_in(table["user_id"], chosen))
            pq.write_table(table, Path(folder, path.name))
        yield folder


def measure_peers(options: argparse.Namespace) -> dict[str, Any]:
    """Targets a second and validation loss of SASRec here, in RecTools and in RecBole."""
    with ExitStack() as stack:
        source = stack.enter_context(subset(options.source, options.users))
        overrides = [f"import.source={source}", *options.overrides]
        config = stack.enter_context(prepared(options.config, overrides))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export(config.data_folder, folder)
        results = {peer: _measure(peer, config, folder, options) for peer in options.peers}
    return {
        "threads": options.threads,
        "users": options.users or "all",
        "epochs": options.epochs,
        "turns_an_epoch": options.turns,
        "steps_a_turn": options.steps or "a part of the epoch",
        "versions_of_peers": _peer_versions(options.python),
        "counts": "real targets a second of training; see the head of benchmarks/peers.py",
        "peers": results,
    }


def _measure(peer: str, config: Config, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, side in _sides(peer, config, folder, options):
            sides[name] = side
            stack.callback(side.close)
        return _compare(sides, options)


def _peer_versions(python: Path) -> dict[str, str]:
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in NAMES}))"
    code = code.replace("NAMES", repr(["rectools", "recbole", "torch", "numpy", "pytorch-lightning"]))
    done = subprocess.run([str(python.absolute()), "-c", code], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _sides(peer: str, config: Config, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Side]]:
    """The peer and its counterpart."""
    train = config.train_config("sasrec")
    expansion = options.expansion or {"rectools": 1, "recbole": 4}[peer]
    content = config.model_dump(mode="json", by_alias=True)
    content["models"]["sasrec"] |= {"layers": 2, "heads": 2, "dropout": options.dropout, "expansion": expansion}
    loss = {"kind": "sampled", "negatives": 256} if peer == "rectools" else {"kind": "full"}
    content["train"]["loss"] |= loss
    content["train"]["tables"]["dimension"] = 64
    content["train"]["reader"] |= {"max_length": options.length, "windows": peer == "recbole"}
    own_rate = options.own_learning_rate or options.learning_rate
    content["train"]["learning_rate"] = own_rate
    tables = train.tables
    yield (
        "ours",
        Ours(
            content,
            options.threads,
            loss=loss,
            batch=f"about {train.reader.tokens} tokens",
            optimizer=f"AdamW {own_rate}; tables {tables.optimizer} {tables.learning_rate}",
            initial_deviation=tables.initial_deviation,
            feed_forward=64 * expansion,
        ),
    )
    shared: dict[str, Any] = {"threads": options.threads, "dimension": 64, "layers": 2, "heads": 2}
    shared |= {
        "length": options.length,
        "dropout": options.dropout,
        "learning-rate": options.learning_rate,
        "epochs": options.epochs,
    }
    facts: dict[str, Any] = {"optimizer": f"Adam {options.learning_rate}"}
    if peer == "rectools":
        own = {"loss": "sampled_softmax", "negatives": 256, "batch": options.rectools_batch}
        facts |= {"loss": "sampled_softmax, 256 negatives for each place", "feed_forward": 64}
        facts["batch"] = f"{options.rectools_batch} sequences padded to {options.length}"
    else:
        own = {"expansion": 4, "batch": options.recbole_batch}
        facts |= {"loss": "CE (full softmax)", "feed_forward": 256}
        facts["batch"] = f"{options.recbole_batch} targets, each a sequence padded to {options.length}"
    yield peer, Peer(options.python, f"benchmarks.peer_{peer}", folder, shared | own, **facts)


def _compare(sides: dict[str, Side], options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    targets = dict.fromkeys(sides, 0)
    for number in range(options.epochs * options.turns):
        last = not options.steps and (number + 1) % options.turns == 0
        round_: dict[str, float] = {}
        for name, side in sides.items():
            steps = options.steps or max(1, side.facts["steps"] // options.turns)
            found = side.turn(None if last else steps)
            targets[name] += found["targets"]
            if found["targets"] and found["seconds"]:
                round_[name] = found["targets"] / found["seconds"]
            if "losses" in found:
                losses[name].append(found["losses"])
            print(f"turn {number + 1}, {name}: {round_.get(name, 0):,.0f} targets/s", file=sys.stderr, flush=True)
        if len(round_) == len(sides):
            for name, rate in round_.items():
                rates[name].append(rate)
    ours, peer = sides
    common = set.intersection(*(set(part[0]) for part in losses.values())) if all(losses.values()) else set()
    curves = {
        name: [round(statistics.mean(part[user] for user in common), 4) for part in parts] if common else []
        for name, parts in losses.items()
    }
    return {
        "sides": {
            name: side.facts
            | {
                "targets_per_second": round(statistics.median(rates[name])),
                "targets_timed": targets[name],
                "validation_loss": curves[name],
            }
            for name, side in sides.items()
        },
        "times_the_peer": ratio_of(rates[ours], rates[peer]),
        "validation_users": len(common),
        "loss_less_the_peers": [round(a - b, 4) for a, b in zip(curves[ours], curves[peer], strict=False)],
    }
