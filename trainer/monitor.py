"""What is written to TensorBoard, under torchtitan's names where it has them, and given to who watches each worker.

Only the first worker writes. Loss and gradient norm are those of the global batch, throughput counts all workers'
tokens and targets, waiting for data is the workers' mean, and memory the most that any takes. Workers exchange this at
each point, of which there is one in `log_steps` steps.
"""

from __future__ import annotations

import math
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from embeddings.plan import GIB
from embeddings.workers import Worker, gather_rows
from trainer.events import Events
from trainer.pace import Computing, ComputingOnDevice, Drift, busy_seconds


class Monitor:
    """One run's TensorBoard file and the counters between two of its points.

    `network`: the dense part, whose passes tell how fast a GPU is. `step`: where the run goes on.
    """

    def __init__(self, folder: str, worker: Worker, model: str, network: nn.Module, step: int = 0) -> None:
        self.worker, self.model = worker, model
        self.events = Events(folder, step, worker.say) if worker.first else None
        self.computing = ComputingOnDevice(network) if worker.device.type == "cuda" else Computing()
        self.drift = Drift()
        self.reset()

    def reset(self) -> None:
        """Begin a new stretch between two points."""
        self.began, self.waiting, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0
        self.targets = 0
        """Of this worker alone, as are the steps for which it had data."""
        self.own_steps = 0
        self.computing.reset()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """The time inside is counted as waiting for data."""
        began, busy = time.perf_counter(), busy_seconds()
        try:
            yield
        finally:
            self.waiting += time.perf_counter() - began
            self.computing.left_out += busy_seconds() - busy

    def count(self, tokens: int, targets: int, has_data: bool) -> None:
        """Count a step: the tokens of all workers, the targets of this one."""
        self.tokens += tokens
        self.targets += targets
        self.steps += 1
        self.own_steps += has_data

    def text(self, name: str, content: str) -> None:
        if self.events:
            self.events.add(lambda writer: writer.add_text(name, content))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.events:
            for name, value in values.items():
                self.events.add(partial(SummaryWriter.add_scalar, tag=name, scalar_value=value, global_step=step))

    def watch(self, **figures: float) -> None:
        """Give figures of this worker to who watches it."""
        self.worker.watch(self.model, figures)

    def point(self, step: int, loss: float, parts: Mapping[str, float], norm: float, learning_rate: float) -> float:
        """Write one point of training; gives tokens per second of this stretch, which ends."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        throughput, step_seconds = self.tokens / seconds, seconds / max(self.steps, 1)
        own = (self.waiting + self.computing.seconds()) / self.own_steps if self.own_steps else math.nan
        waiting = self.waiting / max(self.own_steps, 1)
        memory = _memory(self.worker.device)
        figures = [self.targets, self.waiting / seconds, own, waiting, *memory.values()]
        own_1X = torch.tensor([figures], dtype=torch.float64, device=self.worker.device)
        rows_WX, _ = gather_rows(own_1X, [1] * self.worker.workers)
        targets_W, waited_W, own_W, waiting_W, *memory_XW = rows_WX.T.tolist()
        waited = sum(waited_W) / len(waited_W)
        self._compare(step, own_W, waiting_W, step_seconds)
        self.scalars(
            step,
            {
                "loss_metrics/global_avg_loss": loss,
                **{f"loss_metrics/global_avg_{name}_loss": value for name, value in parts.items()},
                "grad_norm": norm,
                "lr": learning_rate,
                "throughput(tps)": throughput,
                "throughput(targets/s)": sum(targets_W) / seconds,
                "time_metrics/end_to_end(s)": step_seconds,
                "time_metrics/data_loading(s)": waited * step_seconds,
                "time_metrics/data_loading(%)": 100 * waited,
                "time_metrics/data_loading_most(%)": 100 * max(waited_W),
                **{name: max(values) for name, values in zip(memory, memory_XW, strict=True)},
            },
        )
        self.watch(
            targets_per_second=self.targets / seconds, step_seconds=step_seconds, data_wait_ratio=self.waiting / seconds
        )
        if math.isfinite(own):
            self.watch(own_seconds=own)
        self.flush()
        self.reset()
        return throughput

    def _compare(self, step: int, own_W: list[float], waiting_W: list[float], step_seconds: float) -> None:
        """The slowest worker by itself goes to TensorBoard, and says so where the others wait for it."""
        found = self.drift.add(own_W, waiting_W, step_seconds)
        if found is not None and found.rank == self.worker.rank:
            self.worker.say(f"{self.model} step {step}: worker {found.rank} on {socket.gethostname()} {found}")
        if self.drift.slowest is not None:
            slowest = {"ratio": self.drift.slowest.ratio, "rank": float(self.drift.slowest.rank)}
            self.scalars(step, {f"time_metrics/slowest_worker({name})": value for name, value in slowest.items()})

    def flush(self, now: bool = False) -> None:
        if self.events:
            self.events.flush(now)

    def close(self) -> None:
        self.watch(targets_per_second=0.0)
        if self.events:
            self.events.close()


def _memory(device: torch.device) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = {"memory/max_resident(GiB)": peak}
    if device.type == "cuda":
        values["memory/max_active(GiB)"] = torch.cuda.memory_stats(device)["active_bytes.all.peak"] / GIB
        values["memory/max_reserved(GiB)"] = torch.cuda.max_memory_reserved(device) / GIB
    return values
