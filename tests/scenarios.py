"""What tests run on two real processes: all scenarios in one start, because importing TorchRec takes seconds.

A scenario is a function of the data, a folder and the worker that gives something to pickle. The same function run in
one process, or a plain computation, is what a test compares with.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

import embeddings.tables
from embeddings.sharding import table_states
from embeddings.workers import Worker, own_rows, total
from ingest.errors import InputError
from ingest.features.feature import FIRST_VALUE
from tests.evaluation.scenarios import (
    baselines,
    bounds,
    chosen,
    evaluated,
    kinds,
    knowing,
    neural,
    ranking,
    recommended,
)
from tests.models import KINDS
from tests.small import (
    MODEL,
    Data,
    Stopped,
    dense,
    inputs_of,
    make_step,
    make_trainer,
    partly_unknown,
    pointed_case,
    small_pieces,
    softmax_case,
    train_config,
    watched,
    weights,
)
from tests.traffic import bytes_per_step, counted_steps, load_of
from tests.trainer.scenarios import INCREMENTAL, by_clock, drifting, full, incremental, set_aside
from trainer.checkpoint import Checkpoints
from trainer.models.deep import DeepConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.progress import Progress
from trainer.scores.pointers import sum_exp
from trainer.softmax import Pointed, full_softmax
from trainer.step import Step

ALL = ["item", "action", "tags", "device", "genres", "content_type", "release_age"]
SETTINGS: dict[str, dict[str, Any]] = {
    "row_wise": {"tables": {"sharding": dict.fromkeys(ALL, "row_wise"), "optimizer": "rowwise_adagrad"}},
    "table_wise": {"tables": {"sharding": dict.fromkeys(ALL, "table_wise")}},
    "column_wise": {"tables": {"sharding": dict.fromkeys(ALL, "column_wise"), "dimension": 256}},
    "planner": {"tables": {"sharding": {"item": "row_wise"}, "optimizer": "sgd"}},
    "full in one tile": {"tables": {"sharding": {"item": "row_wise"}}, "loss": {"scores_at_once": 10_000}},
    **{
        sampling: {
            "tables": {"optimizer": "rowwise_adagrad"},
            "loss": {"kind": "sampled", "negatives": 16, "sampling": sampling, "in_batch_share": 0.7},
        }
        for sampling in ("log_uniform", "uniform", "in_batch", "mixed")
    },
    "zch": {
        "tables": {
            "optimizer": "rowwise_adagrad",
            "sharding": {"item": "row_wise", "tags": "row_wise"},
            "zch": {
                "genres": {"size": 5, "interval": 1, "eviction": "lru"},
                "tags": {"size": 3, "interval": 2, "eviction": "lfu"},
            },
        }
    },
}
HALF: dict[str, dict[str, Any]] = {
    "fp16 tables": {"tables": SETTINGS["row_wise"]["tables"] | {"precision": "fp16"}},
    "fp16 communication": {"tables": SETTINGS["row_wise"]["tables"] | {"communication": "fp16"}},
}
EVERYTHING = ["request", "history", "attributes", "recent", "transitions", "age", "intents"]
KNOWING: dict[str, NeuralConfig] = {
    "knows everything": MODEL.model_copy(update={"knows": EVERYTHING}),
    "knows the history, sampled": DeepConfig(heads=2, dropout=0.0, window="8h", knows=["history"]),
    "knows what is recent, sampled": SASRecConfig(dropout=0.0, knows=["recent"]),
}
OTHERS = {name: model for name, model in KINDS.items() if name not in ("intentrec", "deep", "sasrec")}
SETTINGS |= {
    name: {"loss": {"kind": "full"}} if name == "knows everything" else SETTINGS["uniform"] for name in KNOWING
}
SETTINGS |= {name: {"loss": {"kind": "full"}} for name in OTHERS}
SAMPLES = {"rows in samples": 5}
"""How many each table's rows are cut into, as on a GPU."""
SETTINGS |= dict.fromkeys(SAMPLES, SETTINGS["row_wise"])
ZCH = {"genres": {"size": 5, "interval": 3}}
"""With a checkpoint after two steps and an eviction in the third."""
STEPS = [[range(9), range(9, 12)], [[], range(12, 20)], [range(20, 29), range(29, 32)]]
"""Rows of each worker in three steps: uneven, and one of them empty."""


def take(step: Any, data: Data, worker: Worker, number: int) -> tuple[float, float]:
    """Take step `number` of STEPS on this worker's part: the global loss, and the gradient's norm."""
    parts = STEPS[number]
    whole = step.asking(partly_unknown(data.batch([row for part in parts for row in part])), 0)
    batch = whole if worker.workers == 1 else step.asking(partly_unknown(data.batch(parts[worker.rank])), 0)
    losses, norm = step.train(batch, number, step.weights_of(whole).tolist())
    return float(total(losses.item)) + sum(float(total(value)) for value in losses.intents.values()), float(norm)


def held(step: Step) -> tuple[int, int]:
    """Bytes of the tables' weights and of their optimizer's state that this worker holds."""
    states = step.parallel.fused_optimizer.state_dict()["state"].values()
    weights = [value for _, value in table_states(step.parallel)]
    optimizer = [value for state in states for value in state.values()]
    sizes = [
        sum(shard.tensor.nbytes for value in values if hasattr(value, "local_shards") for shard in value.local_shards())
        for values in (weights, optimizer)
    ]
    return sizes[0], sizes[1]


def refused(data: Data, folder: Path, worker: Worker) -> tuple[str]:
    """What each worker says where the second may take next to no memory."""
    try:
        make_step(data.manifest, worker, tables={"ddr_gib": 1.0 if worker.first else 1e-6})
    except InputError as error:
        return (str(error),)
    raise AssertionError("was not refused")


def steps(data: Data, folder: Path, worker: Worker, setting: str) -> dict[str, Any]:
    embeddings.tables.SAMPLES["cpu"] = SAMPLES.get(setting, 1)
    step = make_step(
        data.manifest,
        worker,
        (KNOWING | OTHERS).get(setting, MODEL),
        data.items.counts,
        data.known,
        **(SETTINGS | HALF)[setting],
    )
    before = weights(step)
    losses = [take(step, data, worker, 0)]
    first, gradients = weights(step), dense(step, gradients=True)
    losses += [take(step, data, worker, number) for number in (1, 2)]
    plan = {table: parameter.sharding_type for table, parameter in step.planned.parameters().items()}
    return {"before": before, "first": first, "gradients": gradients, "third": weights(step), "losses": losses,
            "plan": plan, "needs": step.planned.needs, "held": held(step)}  # fmt: skip


SPLITS = [(9, 4), (0, 13), (13, 0), (0, 0)]
"""Targets of each worker: uneven, one without any, and both."""


def sharded_softmax(data: Data, folder: Path, worker: Worker, scores: int) -> list[list[Tensor]]:
    """The full softmax of `softmax_case` over two slices: loss, and gradients of the own queries and rows, by split."""
    query, items, target, weight = softmax_case()
    begin, end = own_rows(len(items), worker.rank, worker.workers)
    first = max(begin, FIRST_VALUE)
    results = []
    for sizes in SPLITS:
        own = slice(sum(sizes[: worker.rank]), sum(sizes[: worker.rank + 1]))
        rows = query[own].detach().requires_grad_(), items[first:end].detach().requires_grad_()
        loss = full_softmax(*rows, target[own], weight[own], first, scores)
        results.append([loss.detach(), *torch.autograd.grad(3 * loss, rows)])
    return results


def pointed_softmax(data: Data, folder: Path, worker: Worker) -> tuple[Tensor, ...]:
    """The gradients of this worker's queries, rows and logits of the candidates that each target has of its own."""
    query, items, target, weight = softmax_case()
    logit, hit = pointed_case(target)
    begin, end = own_rows(len(items), worker.rank, worker.workers)
    first, own = max(begin, FIRST_VALUE), slice(*own_rows(len(query), worker.rank, worker.workers))
    inputs = tuple(part.detach().requires_grad_() for part in (query[own], items[first:end], logit[own]))
    pointed = Pointed(*sum_exp(inputs[2], hit[own]))
    return torch.autograd.grad(3 * full_softmax(*inputs[:2], target[own], weight[own], first, 30, pointed), inputs)


def unknown_targets(data: Data, folder: Path, worker: Worker, loss: dict[str, Any]) -> tuple[float, float, bool]:
    """A step whose targets are all unknown, without intents: loss, gradient's norm, and whether all weights stayed."""
    model = DeepConfig(window="8h")
    step = make_step(data.manifest, worker, model, data.items.counts, tables={"optimizer": "sgd"}, loss=loss)
    batch, before = data.batch(range(4)), weights(step)
    unknown = replace(batch, target_Q=torch.ones_like(batch.target_Q))
    losses, norm = step.train(unknown, 0, (0.0, worker.workers * float(batch.weight_Q.sum())))
    after = weights(step)
    return float(losses.item), float(norm), all(torch.equal(after[name], value) for name, value in before.items())


def save(data: Data, folder: Path, worker: Worker) -> list[dict[str, Any]]:
    """Two steps, a checkpoint, a third step: the weights at both places."""
    tables = {"sharding": dict.fromkeys(ALL, "row_wise"), "zch": ZCH}
    step = make_step(data.manifest, worker, unknown_share=0, tables=tables)
    for number in (0, 1):
        take(step, data, worker, number)
    checkpoints = Checkpoints(str(folder / f"made-by-{worker.workers}"), train_config(), worker)
    checkpoints.save(step, Progress(step=2), {})
    saved = weights(step)
    take(step, data, worker, 2)
    checkpoints.wait()
    return [saved, weights(step)]


def load(data: Data, folder: Path, worker: Worker, made_by: int, sharding: str) -> list[dict[str, Any]]:
    """The same two places, coming from the checkpoint that `made_by` workers wrote."""
    tables = {"sharding": dict.fromkeys(ALL, sharding), "zch": ZCH}
    step = make_step(data.manifest, worker, seed=1, unknown_share=0, tables=tables)
    step.recommender.tables.collisions.seed = 0
    checkpoints = Checkpoints(str(folder / f"made-by-{made_by}"), train_config(), worker)
    checkpoints.load(step, checkpoints.latest() or "")
    loaded = weights(step)
    take(step, data, worker, 2)
    return [loaded, weights(step)]


def train(data: Data, folder: Path, worker: Worker) -> dict[str, Any]:
    """Two epochs: the steps taken, the batches there were, and the end."""
    reader = data.reader(worker=worker)
    batches = [len(list(reader.epoch(epoch))) for epoch in (0, 1)]
    trainer = make_trainer(data.url, folder / f"{Path(data.url).parent.name}-{worker.workers}", worker)
    with watched() as taken:
        progress = trainer.fit()
    return {"batches": batches, "steps": len(taken), "inputs": inputs_of(taken), "progress": progress,
            "weights": weights(trainer.step)}  # fmt: skip


def train_one_by_one(data: Data, folder: Path, worker: Worker) -> dict[str, Any]:
    """The same without preparing a step before the one before it is taken."""
    ahead, Step.ahead = Step.ahead, False  # type: ignore[assignment, method-assign]
    try:
        return train(data, folder / "one by one", worker)
    finally:
        Step.ahead = ahead  # type: ignore[method-assign]


def interrupt(data: Data, folder: Path, worker: Worker) -> list[tuple[int, int]]:
    """Die in the fourth step of an epoch; what the two steps before the last checkpoint were trained on."""
    trainer = make_trainer(data.url, folder / "interrupted", worker, epochs=1, checkpoint_steps=2)
    with watched(stop_after=3, last=trainer.checkpoints.wait) as taken:
        try:
            trainer.fit()
        except Stopped:
            return inputs_of(taken[:2])
    raise AssertionError("was not interrupted")


def traffic(data: Data, folder: Path, worker: Worker, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The bytes of a training's steps by collective: counted, and as the formulas have them."""
    trainer = make_trainer(data.url, folder / "traffic", worker, **changes)
    with counted_steps(steps=2) as taken:
        trainer.fit()
    return [
        {
            "counted": step.counted.buffers,
            "sent": step.counted.sent,
            "expected": bytes_per_step(load_of(trainer.step, step.batch, step.number)),
        }
        for step in taken
    ]


TRAFFIC: dict[str, dict[str, Any]] = {
    "row_wise": {"tables": {"sharding": dict.fromkeys(ALL, "row_wise")}, "loss": {"kind": "sampled"}},
    "table_wise": {"tables": {"sharding": dict.fromkeys(ALL, "table_wise")}, "loss": {"kind": "full"}},
    "column_wise": {
        "tables": {"sharding": dict.fromkeys(ALL, "column_wise"), "dimension": 256},
        "loss": {"kind": "sampled", "sampling": "in_batch"},
    },
    "half": {
        "tables": {"sharding": dict.fromkeys(ALL, "row_wise"), "communication": "fp16"},
        "loss": {"kind": "sampled", "sampling": "mixed"},
    },
}
Scenario = Callable[..., Any]
SCENARIOS: dict[str, tuple[Scenario, str, dict[str, Any]]] = {
    **{f"steps/{name}": (steps, "data", {"setting": name}) for name in SETTINGS | HALF},
    **{f"softmax/{scores}": (sharded_softmax, "data", {"scores": scores}) for scores in (1, 30, 10_000)},
    "softmax/pointed": (pointed_softmax, "data", {}),
    **{
        f"unknown/{name}": (unknown_targets, "data", {"loss": loss})
        for name, loss in {
            "full": {"kind": "full"},
            "in_batch": {"kind": "sampled", "sampling": "in_batch"},
            "mixed": {"kind": "sampled", "sampling": "mixed"},
        }.items()
    },
    "refused": (refused, "data", {}),
    "save": (save, "data", {}),
    "load": (load, "data", {"made_by": 1, "sharding": "table_wise"}),
    "set aside": (set_aside, "data", {}),
    "full": (full, "data", {}),
    **{f"incremental/{name}": (incremental, "data", changes) for name, changes in INCREMENTAL.items()},
    "by clock": (by_clock, "data", {}),
    **{f"drifting/{what}": (drifting, "data", {"what": what}) for what in ("data", "computing")},
    "train": (train, "data", {}),
    "train/one by one": (train_one_by_one, "data", {}),
    "train/one has no data": (train, "one group", {}),
    "interrupt": (interrupt, "data", {}),
    **{
        f"ranking/{share}/{filtered}": (ranking, "data", {"share": share, "filtered": filtered})
        for share, filtered in ((0.3, True), (0.0, True), (1.0, False))
    },
    "top/many": (ranking, "data", {"share": 0.7, "filtered": True, "k": 28}),
    "top/others": (ranking, "data", {"share": 0.4, "filtered": True, "known": 18}),
    "baselines": (baselines, "data", {}),
    "kinds": (kinds, "in time", {}),
    "chosen": (chosen, "in time", {}),
    "knowing": (knowing, "data", {}),
    "bounds": (bounds, "simulated", {}),
    "neural": (neural, "data", {}),
    "neural/row_wise": (neural, "data", {"sharding": "row_wise"}),
    **{f"traffic/{name}": (traffic, "data", {"changes": changes}) for name, changes in TRAFFIC.items()},
    "recommended": (recommended, "data", {}),
    "evaluated": (evaluated, "in time", {}),
}
"""Function, data set and arguments, by name."""


def run(name: str, urls: dict[str, str], folder: Path, worker: Worker) -> Any:
    function, data, arguments = SCENARIOS[name]
    with small_pieces():
        return function(Data(urls[data]), folder, worker, **arguments)


def _work(rank: int, urls: dict[str, str], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for name in SCENARIOS:
        began = time.perf_counter()
        try:
            result: Any = run(name, urls, folder, Worker(rank, 2))
        except Exception:
            result = traceback.format_exc()
        seconds = time.perf_counter() - began
        path = folder / f"{name.replace('/', '_')}.{rank}"
        partial = path.with_suffix(f"{path.suffix}.partial")
        partial.write_bytes(pickle.dumps((seconds, result)))
        partial.replace(path)
    dist.destroy_process_group()


class TwoWorkers:
    """Two processes at work on all scenarios; a test waits for the scenario that it needs."""

    def __init__(self, urls: dict[str, str], folder: Path) -> None:
        self.urls, self.folder = urls, folder
        self.processes = torch.multiprocessing.start_processes(
            _work, (urls, folder), nprocs=2, join=False, start_method="spawn"
        )

    def result(self, name: str, limit: float = 240) -> list[Any]:
        """What the scenario gave on rank 0 and on rank 1."""
        files = [self.folder / f"{name.replace('/', '_')}.{rank}" for rank in (0, 1)]
        deadline = time.monotonic() + limit
        while True:
            dead = all(not process.is_alive() for process in self.processes.processes)
            if dead or all(file.exists() for file in files):
                break
            assert time.monotonic() < deadline, f"{name}: the two workers hang"
            time.sleep(0.05)
        time.sleep(0.1)
        results = [pickle.loads(file.read_bytes())[1] for file in files]
        for rank, result in enumerate(results):
            assert not isinstance(result, str), f"{name}, rank {rank}: {result}"
        return results

    def close(self) -> None:
        for process in self.processes.processes:
            process.join(60)
            process.kill()
