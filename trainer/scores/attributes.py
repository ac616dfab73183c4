"""The candidates' attributes: a candidate's vector is its row and a linear mix of its features' vectors.

So an item that training never saw, whose row is the one for unknown items, is told from others by what it is. In
training, a share of the candidates has that row in place of its own, so that the row, and what attributes say of an
item without one, are trained.

    C  candidates     D  dimension     V  the catalogue     A  features of the item with a table
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ingest.arrays.jagged import Jagged
from ingest.data.batch import Lists
from ingest.data.items import ItemTable
from ingest.features.feature import PreparedFeature


class Attributes:
    """The values of the catalogue's lasting features, on a device."""

    def __init__(self, items: ItemTable, features: list[PreparedFeature], device: torch.device) -> None:
        self.single: dict[str, Tensor] = {}
        self.lists: dict[str, tuple[Tensor, Tensor]] = {}
        for feature in features:
            column = items.columns[feature.name]
            if isinstance(column, Jagged):
                self.lists[feature.name] = _tensor(column.values, device), _tensor(column.offsets, device)
            else:
                self.single[feature.name] = _tensor(column, device)

    def of(self, item_C: Tensor) -> dict[str, Tensor | Lists]:
        """The values of the items, [C] each, or lists of them."""
        found: dict[str, Tensor | Lists] = {name: value_V[item_C] for name, value_V in self.single.items()}
        for name, (value_N, offset_V1) in self.lists.items():
            begin_C, length_C = offset_V1[item_C], offset_V1[item_C + 1] - offset_V1[item_C]
            before_C = length_C.cumsum(0) - length_C
            place_N = torch.repeat_interleave(begin_C - before_C, length_C)
            found[name] = Lists(value_N[place_N + torch.arange(len(place_N), device=place_N.device)], length_C)
        return found


def _tensor(values: NDArray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)


class AttributeVectors(nn.Module):
    """What the attributes add to the candidates' rows, [C, D]; it begins as zero."""

    def __init__(self, names: list[str], dimension: int) -> None:
        super().__init__()
        self.names, self.scale = names, math.sqrt(dimension)
        self.linear = nn.Linear(len(names) * dimension, dimension, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """`vectors`: of each feature, [C, D]."""
        added: Tensor = self.linear(torch.cat([vectors[name] for name in self.names], dim=1) * self.scale)
        return added
