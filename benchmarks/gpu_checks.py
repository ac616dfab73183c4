"""The checks of benchmarks/gpu.py that say whether a GPU computes what the CPU does."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from benchmarks.training import Case
from embeddings.sharding import table_states
from embeddings.workers import Worker, single_process
from ingest.data.batch import Batch
from ingest.data.manifest import load_manifest
from trainer.attention import CausalAttention, Layout
from trainer.models.intentrec import IntentRecConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.step import Step
from trainer.train_config import TrainConfig

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    """How large the checks are."""

    log: tuple[str, ...]
    """Overrides of configs/demo.yaml for the log."""
    tokens: int
    dimensions: tuple[int, ...]
    steps: int
    """Timed, after as many as `warmup`."""
    warmup: int
    matmul: int
    negatives: int
    rows: tuple[int, ...]
    """Of the item table, in the check of memory."""
    full_items: int
    scores: tuple[int, ...]
    """Scores at once of the full softmax: few make it go twice over tiles, as a sharded catalogue does."""
    compared: int
    """Tokens of a batch whose step is also taken by the CPU or in fp32."""
    sequences: int
    longest: int
    compile: bool = True


LARGE = Sizes(
    log=("simulate.users=2500", "simulate.days=40"),
    tokens=65_536,
    dimensions=(64, 128, 256),
    steps=10,
    warmup=4,
    matmul=8192,
    negatives=8192,
    rows=(10_000, 10_000_000, 100_000_000),
    full_items=1_000_000,
    scores=(2**25, 2**28),
    compared=8192,
    sequences=64,
    longest=200,
)
SMALL = Sizes(
    log=("simulate.users=150", "simulate.items=200", "simulate.days=20"),
    tokens=256,
    dimensions=(16,),
    steps=2,
    warmup=1,
    matmul=256,
    negatives=32,
    rows=(1_000, 5_000),
    full_items=2_000,
    scores=(2**12, 2**20),
    compared=256,
    sequences=6,
    longest=12,
    compile=False,
)


@dataclass(frozen=True)
class Bench:
    """Where and on what the checks run."""

    data: str
    device: torch.device
    sizes: Sizes
    deadline: float
    note: Callable[[dict[str, Any]], None] = field(default=lambda found: None)
    """Keeps what a check has found so far, should it be ended."""

    def case(self, model: str, dimension: int, dropout: float = 0.0, tokens: int | None = None, **train: Any) -> Case:
        """A model and how it is trained; `train`: the section's values, those of `tables` and `loss` laid over ours."""
        base: dict[str, Any] = {
            "reader": {"tokens": tokens or self.sizes.tokens, "max_length": 200},
            "tables": {"dimension": dimension} | train.pop("tables", {}),
            "loss": {"kind": "sampled", "negatives": self.sizes.negatives} | train.pop("loss", {}),
        }
        config = TrainConfig.model_validate(base | train)
        settings: NeuralConfig = SASRecConfig(heads=4, layers=4, dropout=dropout)
        if model == "intentrec":
            settings = IntentRecConfig(heads=4, window="1d", intent_layers=2, item_layers=2, dropout=dropout)
        return Case(settings, config, self.data, load_manifest(self.data))

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline


@dataclass
class Comparison:
    """Numbers held against a reference."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, ours: Tensor, reference: Tensor, tolerance: float) -> None:
        """The norm of the difference over the reference's."""
        ours, reference = ours.detach().double().cpu(), reference.detach().double().cpu()
        error = float((ours - reference).norm() / reference.norm().clamp(min=1e-12))
        self.cases.append({"what": name, "error": float(f"{error:.3g}"), "allowed": tolerance})
        if not error <= tolerance:
            self.wrong.append(f"{name}: {error:.3g}")

    def result(self) -> dict[str, Any]:
        """How many were compared, those nearest to what is allowed, and what was beyond it."""
        worst = sorted(self.cases, key=lambda entry: -entry["error"] / entry["allowed"])[:12]
        return {"compared": len(self.cases), "nearest": worst, "wrong": self.wrong}


def attention(bench: Bench) -> dict[str, Any]:
    """Each kernel that attention takes, against the padded one on the CPU in fp32: output and gradients."""
    found, sizes = Comparison(), bench.sizes
    for dimension in sizes.dimensions:
        generator = torch.Generator().manual_seed(dimension)
        lengths_B = torch.randint(1, sizes.longest + 1, (sizes.sequences,), generator=generator).sort().values
        tokens = int(lengths_B.sum())
        x_TD, gradient_TD = (torch.randn(tokens, dimension, generator=generator) for _ in range(2))
        time_T = torch.cat([torch.arange(int(length)) * 1000 for length in lengths_B])
        torch.manual_seed(0)
        module = CausalAttention(dimension, 4)
        for window in (None, 1000 * sizes.longest // 8):
            reference = _attended(module, x_TD, gradient_TD, lengths_B, time_T, window, CPU, torch.float32)
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
                ours = _attended(module, x_TD, gradient_TD, lengths_B, time_T, window, bench.device, dtype)
                kind = f"{'causal' if window is None else 'window'} {str(dtype).removeprefix('torch.')} D={dimension}"
                for name, value in ours.items():
                    found.add(f"{kind} {name}", value, reference[name], tolerance)
    return found.result()


def _attended(
    module: CausalAttention,
    x_TD: Tensor,
    gradient_TD: Tensor,
    lengths_B: Tensor,
    time_T: Tensor,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    module = copy.deepcopy(module).to(device)
    x_TD = x_TD.detach().clone().to(device).requires_grad_()
    layout = Layout(lengths_B, device)
    masks = None if window is None else layout.window_masks(time_T.to(device), window)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        out_TD = module(x_TD, layout, masks)
    out_TD.float().backward(gradient_TD.to(device))
    assert x_TD.grad is not None
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    bias = gradients["gradient of qkv.bias"]
    assert bias is not None
    third = len(bias) // 3
    gradients["gradient of qkv.bias"] = torch.cat([bias[:third], bias[2 * third :]])
    return {"output": out_TD, "gradient of input": x_TD.grad, **gradients}  # type: ignore[dict-item]


def precision(bench: Bench) -> dict[str, Any]:
    """Losses and dense gradients of a step in bf16 against fp32, on the same device."""
    found, sizes = Comparison(), bench.sizes
    dimension = sizes.dimensions[-1]
    for model in ("sasrec", "intentrec"):
        for kind in ("sampled", "full"):
            taken = {}
            for name in ("fp32", "bf16"):
                case = bench.case(
                    model, dimension, tokens=sizes.compared, precision=name, loss={"kind": kind}, clip_norm=1e9
                )
                with single_process(bench.device):
                    taken[name] = one_step(case, bench.device)
            bf16, fp32 = taken["bf16"], taken["fp32"]
            found.add(f"{model} {kind} loss", bf16.loss, fp32.loss, 1e-2)
            gradients = [torch.cat([value.flatten() for value in each.gradients.values()]) for each in (bf16, fp32)]
            found.add(f"{model} {kind} dense gradient", *gradients, 6e-2)
    return found.result()


@dataclass(frozen=True)
class Taken:
    """A step from the first weights on."""

    loss: Tensor
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    """Rows of every table before the step."""
    after: dict[str, Tensor]


def one_step(case: Case, device: torch.device) -> Taken:
    """The first step on the first batch, in a process group that is there."""
    worker = Worker(device=device)
    (batch,) = case.batches(1, worker)
    step, batch = case.step(worker), batch.to(device)
    before = rows_of(step)
    losses, _ = step.train(batch, 0, float(batch.weight_Q.sum()))
    loss = losses.item + sum(losses.intents.values())
    gradients = {
        name: parameter.grad.detach().cpu()
        for name, parameter in step.dense.items()
        if parameter.grad is not None and ".embeddings." not in name
    }
    return Taken(loss.cpu(), gradients, before, rows_of(step))


def rows_of(step: Step) -> dict[str, Tensor]:
    """Every table whole, on the CPU; for one worker."""
    found = {}
    for table, value in table_states(step.parallel):
        if not isinstance(value, ShardedTensor):
            found[table] = value.detach().cpu().clone()
            continue
        whole = torch.full(tuple(value.size()), torch.nan)
        for shard in value.local_shards():
            row, column = shard.metadata.shard_offsets
            rows, columns = shard.metadata.shard_sizes
            whole[row : row + rows, column : column + columns] = shard.tensor.detach().float().cpu()
        found[table] = whole
    return found


Update = Callable[[Tensor], Tensor]
EPSILON = 1e-8
UPDATES: dict[str, Update] = {
    "sgd": lambda g: g,
    "adagrad": lambda g: g / (g.abs() + EPSILON),
    "rowwise_adagrad": lambda g: g / (g.pow(2).mean(dim=1, keepdim=True).sqrt() + EPSILON),
    "adam": lambda g: g / (g.abs() + EPSILON),
}
"""The first update of each optimizer, over the learning rate."""
NOT_ON_CPU = ("adam", "data_parallel")


def tables(bench: Bench) -> dict[str, Any]:
    """A step under each sharding and optimizer: dense gradients and rows against the CPU's gradients."""
    found, rate, skipped = Comparison(), 0.5, []
    dimension, tokens = bench.sizes.dimensions[0], bench.sizes.compared
    with single_process(CPU):
        settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0}
        case = bench.case("intentrec", dimension, tokens=tokens, clip_norm=1e9, tables=settings)
        reference = one_step(case, CPU)
    gradients = {name: reference.before[name] - after for name, after in reference.after.items()}
    for kind, optimizer, settings in _table_settings(list(gradients), rate):
        name = f"{kind} {optimizer}"
        if bench.device.type == "cpu" and (kind in NOT_ON_CPU or optimizer in NOT_ON_CPU):
            skipped.append(f"{name}: fbgemm has it on GPU only")
            continue
        case = bench.case("intentrec", dimension, tokens=tokens, clip_norm=1e9, learning_rate=rate, tables=settings)
        with single_process(bench.device):
            ours = one_step(case, bench.device)
        found.add(f"{name} loss", ours.loss, reference.loss, 1e-5)
        for parameter, gradient in reference.gradients.items():
            if not _blind(parameter):
                found.add(f"{name} gradient of {parameter}", ours.gradients[parameter], gradient, 1e-3)
        for table, gradient in gradients.items():
            chosen = gradient.abs().amax(dim=1) > 1e-6
            change = (ours.before[table] - ours.after[table]) / rate
            ours_rows, expected = _settled(optimizer, gradient[chosen], change[chosen])
            found.add(f"{name} rows of {table}", ours_rows, expected, 1e-2)
            if optimizer == "sgd" and bool((change[(gradient == 0).all(dim=1)].abs() > 1e-6).any()):
                found.wrong.append(f"{name} rows of {table}: rows that nobody read have changed")
    return found.result() | {"not on this device": skipped}


def _table_settings(names: Sequence[str], rate: float) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Sharding, optimizer and the `tables` section."""
    for optimizer in ("sgd", "adagrad", "rowwise_adagrad", "adam"):
        sharding = dict.fromkeys(names, "row_wise")
        yield "row_wise", optimizer, {"optimizer": optimizer, "learning_rate": rate, "sharding": sharding}
    sharding = dict.fromkeys(names, "table_wise")
    yield "table_wise", "rowwise_adagrad", {"learning_rate": rate, "sharding": sharding}
    yield "data_parallel", "adam", {"sharding": dict.fromkeys(names, "data_parallel")}


def _settled(optimizer: str, gradient: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """What changed and what should have, where the gradient is not rounding: Adam divides by its size."""
    expected = UPDATES[optimizer](gradient)
    if optimizer in ("adam", "adagrad"):
        large = gradient.abs() > 1e-5
        return change[large], expected[large]
    return change, expected


def _blind(parameter: str) -> bool:
    """Whether a softmax is blind to it, so that its gradient is nothing but rounding."""
    return parameter.endswith(("attention.qkv.bias", "network.attention.bias"))


def moved(case: Case, items: int, batch: Batch) -> tuple[Case, Batch]:
    """The case with a catalogue of `items`, and the batch with items drawn from all of it, popular ones more often."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> Tensor:
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        return (torch.exp(share * torch.log(torch.tensor(float(items - 2)))).long() + 1).clamp(2, items - 1)

    manifest = case.manifest.model_copy(update={"items": items})
    target_Q = torch.where(batch.target_Q > 1, drawn(len(batch.target_Q)), batch.target_Q)
    return replace(case, manifest=manifest), replace(batch, item_T=drawn(batch.tokens), target_Q=target_Q)
