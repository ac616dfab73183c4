"""The checks of benchmarks/gpu.py that say whether a GPU computes what the CPU does."""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from benchmarks.training import Case, header
from embeddings.sharding import table_states
from embeddings.table_config import table_of
from embeddings.workers import Worker, single_process
from ingest.data.batch import Batch
from ingest.data.manifest import load_manifest
from trainer.attention import Attention, Layout, Window
from trainer.layers import Inputs
from trainer.models.hstu import HSTUConfig
from trainer.models.intentrec import IntentRecConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.recommender import build
from trainer.train_config import TrainConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    """How large the checks are; by default for a GPU."""

    log: tuple[str, ...] = ("simulate.users=12000", "simulate.days=40", "simulate.processes=8")
    """Overrides of configs/demo.yaml."""
    tokens: int = 65_536
    dimensions: tuple[int, ...] = (128, 256, 512)
    steps: int = 10
    """Timed, after a warm-up."""
    rows: tuple[int, ...] = (10_000, 10_000_000, 100_000_000)
    """Of the item table, in the check of memory."""
    full_items: int = 1_000_000
    scores: tuple[int, ...] = (2**25, 2**28)
    """Scores at once of the full softmax: few make it go twice over tiles, as a sharded catalogue does."""
    compared: int = 8192
    """Tokens of a batch whose step is also taken by the CPU or in fp32."""
    longest: int = 200
    long: int = 1024
    """Of the sequences of some cases of the throughput."""
    batches: tuple[int, ...] = (8192, 262_144)
    """Tokens of others."""


SMALL = Sizes(
    log=("simulate.users=150", "simulate.items=200", "simulate.days=20"),
    tokens=256,
    dimensions=(16,),
    steps=2,
    rows=(1_000, 5_000),
    full_items=2_000,
    scores=(2**12, 2**20),
    compared=256,
    longest=12,
    long=40,
    batches=(128,),
)


@dataclass(frozen=True)
class Bench:
    """Where and on what the checks run."""

    data: str
    device: torch.device
    sizes: Sizes
    deadline: float
    path: Path

    def case(
        self,
        model: str,
        dimension: int,
        dropout: float = 0.0,
        tokens: int | None = None,
        length: int = 200,
        **train: Any,
    ) -> Case:
        """A model and how it is trained; `train`: the section's values, those of `tables` and `loss` laid over ours."""
        base: dict[str, Any] = {
            "reader": {"tokens": tokens or self.sizes.tokens, "max_length": length},
            "tables": {"dimension": dimension} | train.pop("tables", {}),
            "loss": {"kind": "sampled", "negatives": self.sizes.tokens // 8} | train.pop("loss", {}),
        }
        config = TrainConfig.model_validate(base | train)
        settings: NeuralConfig = SASRecConfig(heads=4, layers=4, dropout=dropout)
        if model == "hstu":
            settings = HSTUConfig(heads=4, layers=4, dropout=dropout)
        if model == "intentrec":
            settings = IntentRecConfig(heads=4, window="1d", intent_layers=2, item_layers=2, dropout=dropout)
        return Case(settings, config, self.data, load_manifest(self.data))

    def note(self, found: dict[str, Any]) -> None:
        """Keep what a check has found so far, should it be ended."""
        self.path.write_text(json.dumps(header("gpu") | found, indent=1))

    def noted(self) -> dict[str, Any]:
        """What was kept last."""
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline


@dataclass
class Comparison:
    """Numbers held against a reference; those of each case are kept once all of it were added."""

    bench: Bench
    cases: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """For which no time was left."""

    def add(self, name: str, ours: Tensor, reference: Tensor, tolerance: float) -> None:
        """The norm of the difference over the reference's."""
        ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
        error = float((ours - reference).norm() / reference.norm().clamp(min=1e-12))
        self.cases.append({"what": name, "error": float(f"{error:.3g}"), "allowed": tolerance})
        if not error <= tolerance:
            self.wrong.append(f"{name}: {error:.3g}")

    def begins(self, case: str) -> bool:
        """Whether there is time for the next case; what the ones before gave is kept."""
        self.bench.note(self.result())
        late = self.bench.late
        if late:
            self.skipped.append(case)
        return not late

    def result(self) -> dict[str, Any]:
        """How many were compared, those nearest to what is allowed, what was beyond it, and what was left out."""
        worst = sorted(self.cases, key=lambda entry: -entry["error"] / entry["allowed"])[:12]
        return {"compared": len(self.cases), "nearest": worst, "wrong": self.wrong, "skipped": self.skipped}


def attention(bench: Bench) -> dict[str, Any]:
    """Each kernel that attention takes, against the padded one on the CPU in fp32: output and gradients."""
    found = Comparison(bench)
    for dimension in bench.sizes.dimensions:
        for compare in (_compare_attention, _compare_pointwise):
            if found.begins(f"{compare.__name__} D={dimension}"):
                compare(found, bench, dimension)
    return found.result()


def _drawn(bench: Bench, dimension: int) -> tuple[torch.Generator, Tensor, Tensor, Tensor]:
    """Lengths of sequences, their tokens and the gradients of what comes out, and the generator to go on with."""
    generator = torch.Generator().manual_seed(dimension)
    lengths_B = torch.randint(1, bench.sizes.longest + 1, (64,), generator=generator).sort().values
    x_TD, gradient_TD = (torch.randn(int(lengths_B.sum()), dimension, generator=generator) for _ in range(2))
    return generator, lengths_B, x_TD, gradient_TD


def _compare_attention(found: Comparison, bench: Bench, dimension: int) -> None:
    _, lengths_B, x_TD, gradient_TD = _drawn(bench, dimension)
    time_T = torch.cat([torch.arange(int(length)) * 1000 for length in lengths_B])
    torch.manual_seed(0)
    modules = {
        "causal": Attention(dimension, 4),
        "window": Attention(dimension, 4),
        "all": Attention(dimension, 4, False),
    }

    def attended(seen: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        attention, given_TD = copy.deepcopy(modules[seen]).to(device), x_TD.to(device, copy=True).requires_grad_()
        layout, window = Layout(lengths_B, device), 1000 * bench.sizes.longest // 8
        seen_in = Window(layout, time_T.to(device), window) if seen == "window" else None
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out_TD = attention(given_TD, layout, seen_in)
        out_TD.float().backward(gradient_TD.to(device))
        gradients: dict[str, Any] = {name: parameter.grad for name, parameter in attention.named_parameters()}
        query, _, value = gradients["qkv.bias"].chunk(3)  # a softmax is blind to the keys' bias
        return {"output": out_TD, "input": given_TD.grad, **gradients, "qkv.bias": torch.cat([query, value])}

    for seen in modules:
        reference = attended(seen, CPU, torch.float32)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
            kind = f"{seen} {str(dtype).removeprefix('torch.')} D={dimension}"
            for name, value in attended(seen, bench.device, dtype).items():
                found.add(f"{kind} {name}", value, reference[name], tolerance)


def _compare_pointwise(found: Comparison, bench: Bench, dimension: int) -> None:
    """HSTU's encoder, with times: in half precision its attention is jagged."""
    generator, lengths_B, x_TD, gradient_TD = _drawn(bench, dimension)
    time_T = torch.cat([torch.randint(10**8, (int(n),), generator=generator).cumsum(0) for n in lengths_B])
    place_T = torch.cat([torch.arange(int(length)) for length in lengths_B])
    config = TrainConfig.model_validate(
        {"reader": {"max_length": bench.sizes.longest}, "tables": {"dimension": dimension}}
    )
    torch.manual_seed(0)
    manifest = load_manifest(bench.data)
    module = build(HSTUConfig(heads=4, dropout=0.0), config, manifest).network.encoder

    def encoded(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        encoder, given_TD = copy.deepcopy(module).to(device), x_TD.to(device, copy=True).requires_grad_()
        inputs = Inputs({}, given_TD[:, :0], time_T.to(device), place_T.to(device), Layout(lengths_B, device))
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out_TD = encoder(given_TD, inputs)
        out_TD.float().backward(gradient_TD.to(device))
        return {"output": out_TD, "input": given_TD.grad} | {n: p.grad for n, p in encoder.named_parameters()}

    reference = encoded(CPU, torch.float32)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        for name, value in encoded(bench.device, dtype).items():
            kind = f"hstu {str(dtype).removeprefix('torch.')} D={dimension}"
            found.add(f"{kind} {name}", value, reference[name], tolerance)


def precision(bench: Bench) -> dict[str, Any]:
    """Losses and dense gradients of a step in bf16 against fp32, on the same device."""
    found, sizes = Comparison(bench), bench.sizes
    for model in ("sasrec", "intentrec"):
        for kind in ("sampled", "full"):
            if not found.begins(f"{model} {kind}"):
                continue
            settings = {"tokens": sizes.compared, "loss": {"kind": kind}, "clip_norm": 1e9}
            with single_process(bench.device):
                bf16, fp32 = (
                    one_step(bench.case(model, sizes.dimensions[-1], precision=name, **settings), bench.device)
                    for name in ("bf16", "fp32")
                )
            found.add(f"{model} {kind} loss", bf16.loss, fp32.loss, 1e-2)
            gradients = [torch.cat([value.flatten() for value in each.gradients.values()]) for each in (bf16, fp32)]
            found.add(f"{model} {kind} dense gradient", *gradients, 6e-2)
    return found.result()


@dataclass(frozen=True)
class Taken:
    """A step from the first weights on: loss, dense gradients, and the rows of every table before and after it."""

    loss: Tensor
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def one_step(case: Case, device: torch.device) -> Taken:
    """The first step on the first batch, in a process group that is there."""
    worker = Worker(device=device)
    step, (batch,) = case.step(worker), case.batches(1, worker)
    before, batch = rows_of(step), batch.to(device)
    losses, _ = step.train(batch, 0, step.weights_of(batch).tolist())
    loss = losses.item + sum(losses.intents.values())
    gradients = {
        name: parameter.grad.detach().cpu()
        for name, parameter in step.dense.items()
        if parameter.grad is not None and table_of(name) is None
    }
    return Taken(loss.cpu(), gradients, before, rows_of(step))


def rows_of(step: Any) -> dict[str, Tensor]:
    """Every table whole, on the CPU; for one worker."""
    found = {}
    for table, value in table_states(step.parallel):
        shards = value.local_shards() if isinstance(value, ShardedTensor) else []
        found[table] = torch.full(tuple(value.size()), torch.nan) if shards else value.detach().cpu().clone()
        for shard in shards:
            row, column = shard.metadata.shard_offsets
            rows, columns = shard.metadata.shard_sizes
            found[table][row : row + rows, column : column + columns] = shard.tensor.detach().float().cpu()
    return found


UPDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sgd": lambda g: g,
    "adagrad": lambda g: g / (g.abs() + 1e-8),
    "rowwise_adagrad": lambda g: g / (g.pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-8),
    "adam": lambda g: g / (g.abs() + 1e-8),
    "rowwise_adam": lambda g: g / (g.pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-8),
}
"""The first update of each optimizer, over the learning rate."""
TABLES = [
    *(("row_wise", name, "fused") for name in UPDATES),
    ("table_wise", "rowwise_adagrad", "fused"),
    ("row_wise", "sgd", "fused_uvm"),
    ("row_wise", "rowwise_adagrad", "fused_uvm_caching"),
    ("data_parallel", "adam", "fused"),
]
"""Sharding, optimizer and kernel; fbgemm has Adam, and rows in the machine's memory, on a GPU only, and what is data
parallel takes the dense part's optimizer."""


def tables(bench: Bench) -> dict[str, Any]:
    """A step under each sharding and optimizer: dense gradients and rows against the CPU's gradients."""
    found, rate = Comparison(bench), 0.5
    dimension = bench.sizes.dimensions[0]
    shared: dict[str, Any] = {"tokens": bench.sizes.compared, "clip_norm": 1e9}
    with single_process(CPU):
        settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0}
        reference = one_step(bench.case("intentrec", dimension, tables=settings, **shared), CPU)
    gradients = {name: reference.before[name] - after for name, after in reference.after.items()}
    for sharding, optimizer, kernel in TABLES:
        name = f"{sharding} {optimizer} {kernel}"
        if bench.device.type == "cpu" and ("adam" in optimizer or kernel != "fused"):
            continue
        if not found.begins(name):
            continue
        settings = {"sharding": dict.fromkeys(gradients, sharding)}
        if kernel != "fused":
            settings["kernel"] = dict.fromkeys(gradients, kernel)
        if sharding != "data_parallel":
            settings |= {"optimizer": optimizer, "learning_rate": rate}
        with single_process(bench.device):
            case = bench.case("intentrec", dimension, learning_rate=rate, tables=settings, **shared)
            ours = one_step(case, bench.device)
        found.add(f"{name} loss", ours.loss, reference.loss, 1e-5)
        for parameter, gradient in reference.gradients.items():
            if not parameter.endswith(("attention.qkv.bias", "network.attention.bias")):  # a softmax is blind to them
                found.add(f"{name} gradient of {parameter}", ours.gradients[parameter], gradient, 1e-3)
        for table, gradient in gradients.items():
            chosen = gradient.abs().amax(dim=1) > 1e-6
            change = (ours.before[table] - ours.after[table]) / rate
            changed, expected = change[chosen], UPDATES[optimizer](gradient[chosen])
            if optimizer in ("adam", "adagrad"):  # which divide by the gradient: where that is rounding, so are they
                large = gradient[chosen].abs() > 1e-5
                changed, expected = changed[large], expected[large]
            found.add(f"{name} rows of {table}", changed, expected, 1e-2)
            if optimizer == "sgd" and bool((change[(gradient == 0).all(dim=1)].abs() > 1e-6).any()):
                found.wrong.append(f"{name} rows of {table}: rows that nobody read have changed")
    return found.result()


def free(device: torch.device) -> None:
    """Let go of models that are no longer used: they have cycles, so a peak would count those of cases before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def moved(case: Case, items: int, batch: Batch) -> tuple[Case, Batch]:
    """The case with a catalogue of `items`, and the batch with items drawn from all of it, popular ones more often."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        return (torch.exp(share * torch.log(torch.tensor(float(items - 2)))).long() + 1).clamp(2, items - 1)

    manifest = case.manifest.model_copy(update={"items": items})
    target_Q = torch.where(batch.target_Q > 1, drawn(len(batch.target_Q)), batch.target_Q)
    return replace(case, manifest=manifest), replace(batch, items=items, item_T=drawn(batch.tokens), target_Q=target_Q)
