"""What is written to TensorBoard, under torchtitan's names where it has them.

Only the first worker writes. Loss and gradient norm are those of the global batch; throughput counts all workers'
tokens; data loading is the share of the time that this worker waited for a batch.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping

import torch
from torch.utils.tensorboard import SummaryWriter

from embeddings.workers import Worker


class Monitor:
    """One run's TensorBoard file and the counters between two of its points."""

    def __init__(self, folder: str, worker: Worker) -> None:
        self.worker = worker
        self.writer = SummaryWriter(folder, flush_secs=10) if worker.first else None
        self.reset()

    def reset(self) -> None:
        """Begin a new stretch between two points."""
        self.began, self.waiting, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0

    def text(self, name: str, content: str) -> None:
        if self.writer:
            self.writer.add_text(name, content)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def point(self, step: int, loss: float, parts: Mapping[str, float], norm: float, learning_rate: float) -> float:
        """Write one point of training; gives tokens per second of this stretch, which ends."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        throughput = self.tokens / seconds
        self.scalars(
            step,
            {
                "loss_metrics/global_avg_loss": loss,
                **{f"loss_metrics/global_avg_{name}_loss": value for name, value in parts.items()},
                "grad_norm": norm,
                "lr": learning_rate,
                "throughput(tps)": throughput,
                "time_metrics/end_to_end(s)": seconds / max(self.steps, 1),
                "time_metrics/data_loading(s)": self.waiting / max(self.steps, 1),
                "time_metrics/data_loading(%)": 100 * self.waiting / seconds,
                **_memory(self.worker.device),
            },
        )
        self.reset()
        return throughput

    def flush(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _memory(device: torch.device) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = {"memory/max_resident(GiB)": peak}
    if device.type == "cuda":
        gib = 2**30
        values["memory/max_active(GiB)"] = torch.cuda.memory_stats(device)["active_bytes.all.peak"] / gib
        values["memory/max_reserved(GiB)"] = torch.cuda.max_memory_reserved(device) / gib
    return values
