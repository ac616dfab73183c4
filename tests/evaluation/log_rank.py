"""A metric of one's own: one file, one line of registration."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import register

NAME = "mean reciprocal log rank"

register(NAME, lambda rank_N: 1.0 / (1.0 + np.log(rank_N)))
