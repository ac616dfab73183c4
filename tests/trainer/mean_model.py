"""A model of the tests' own: the query is a linear layer of the mean of the items so far."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from trainer.models.registry import NeuralConfig, register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest
    from trainer.layers import Inputs, Output


@register
class MeanConfig(NeuralConfig):
    kind: Literal["mean"] = "mean"

    @property
    def reads_features(self) -> bool:
        return False

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        return network_class()(dimension)


@cache
def network_class() -> type[nn.Module]:
    import torch
    import torch.nn.functional as F
    from torch import nn

    from trainer.layers import Output

    class Mean(nn.Module):
        def __init__(self, dimension: int) -> None:
            super().__init__()
            self.linear = nn.Linear(dimension, dimension)

        def forward(self, inputs: Inputs) -> Output:
            total_TD = F.pad(inputs.vectors["item"].cumsum(dim=0), (0, 0, 1, 0))
            end_T = torch.arange(1, len(inputs.position_T) + 1, device=inputs.position_T.device)
            count_T = inputs.position_T + 1
            return Output(self.linear((total_TD[end_T] - total_TD[end_T - count_T]) / count_T[:, None]))

    return Mean
