"""What the steps since a point of the curve add up to, on the device: a step that reads a number waits for the device.

So nothing is read but at a point and before anything is saved, and the first step that was not finite is kept until
then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NotFinite:
    """The first step whose loss or gradient's norm was not finite, counted from 1."""

    step: int
    loss: float
    norm: float


class Totals:
    """Sums of losses by name, in float64. `sums`: with which they begin, those of a run that goes on."""

    def __init__(self, device: torch.device, sums: Mapping[str, float]) -> None:
        self.device, self.begin = device, sums
        self.names: list[str] = []
        self.sum_N: Tensor | None = None
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.bad_3 = torch.zeros(3, dtype=torch.float64, device=device)
        """Step, loss and norm of the first step that was not finite; zeros as long as there is none."""

    def add(self, step: int, names: Sequence[str], loss_N: Tensor, loss: Tensor, norm: Tensor) -> None:
        """A step's sums of losses, [N] float64, its mean loss and its gradient's norm, all over all workers."""
        if self.sum_N is None:
            self.names = list(names)
            self.sum_N = loss_N.new_tensor([self.begin.get(name, 0.0) for name in names])
        self.sum_N = self.sum_N + loss_N
        self.norm = norm.double()
        now_3 = torch.stack([loss_N.new_full((), step), loss.double(), self.norm])
        is_first = (self.bad_3[0] == 0) & ~now_3.isfinite().all()
        self.bad_3 = torch.where(is_first, now_3, self.bad_3)

    def read(self) -> tuple[dict[str, float], float, NotFinite | None]:
        """The sums, the last step's norm, and the first step that was not finite. Waits for the device."""
        if self.sum_N is None:
            return dict(self.begin), 0.0, None
        step, loss, bad_norm, norm, *sums = torch.cat([self.bad_3, self.norm[None], self.sum_N]).tolist()
        bad = NotFinite(int(step), loss, bad_norm) if step else None
        return dict(zip(self.names, sums, strict=True)), norm, bad

    def restart(self) -> None:
        """Begin the sums anew."""
        self.sum_N, self.begin = None, {}
