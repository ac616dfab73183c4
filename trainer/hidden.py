"""Which interactions a model that learns from hidden ones is asked for (the Cloze task of BERT4Rec, arXiv 1904.06690).

Its targets are the interactions that are hidden in an epoch: about a share of them, and the last of each sequence,
which is nobody's input. Whatever is asked for the model itself hides (`Inputs.asked_Q`): so no target is an input.

A hash of (seed, epoch, interaction) decides: the same are hidden on any number of workers and after a resume.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ingest.data.batch import Batch, Lists
from trainer.unknown import hash_of, lowest


def with_hidden(batch: Batch, share: float, seed: int, epoch: int) -> Batch:
    """`batch` with those of its targets alone that `epoch` hides."""
    hidden_T = lowest(hash_of(batch, seed, -1 - epoch), share)
    hidden_T[batch.lengths_B.cumsum(0).to(hidden_T.device) - 1] = True
    kept_K = hidden_T[batch.target_position_Q].nonzero()[:, 0]
    return replace(
        batch,
        target_position_Q=batch.target_position_Q[kept_K],
        target_Q=batch.target_Q[kept_K],
        weight_Q=batch.weight_Q[kept_K],
        row_Q=batch.row_Q[kept_K],
        labels={name: _taken(value, kept_K) for name, value in batch.labels.items()},
    )


def _taken(value: Tensor | Lists, index_K: Tensor) -> Tensor | Lists:
    """The values, or the lists, at `index_K`, which rises."""
    if not isinstance(value, Lists):
        return value[index_K]
    kept_Q = torch.zeros_like(value.lengths, dtype=torch.bool).index_fill_(0, index_K, True)
    return Lists(value.values[kept_Q.repeat_interleave(value.lengths)], value.lengths[index_K])
