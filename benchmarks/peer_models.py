"""Our models against RecTools' and RecBole's: the same weights in, the same scores out.

    python -m benchmarks.peer_models [--python .venv-peers/bin/python]

Drawn weights and users of several lengths go through our network, jagged and all together, and user by user, padded,
through the peer's (benchmarks/peer_modules.py, in the peers' environment). Prints JSON: for each model the largest
difference between the scores of all items at all places, and the largest score.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import header
from ingest.data.manifest import Manifest
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.bert4rec import BERT4RecConfig
from trainer.models.gru import GRUConfig
from trainer.models.hstu import HSTUConfig
from trainer.models.registry import NeuralConfig
from trainer.models.sasrec import SASRecConfig

ROOT = Path(__file__).resolve().parents[1]
ITEMS, DIMENSION, LONGEST, LENGTHS = 50, 16, 24, [1, 2, 7, 7, 15, 24]
ITEMS_ALONE: dict[str, Any] = {"features": False, "intents": [], "dropout": 0.0}
MODELS: dict[str, NeuralConfig] = {
    "Transformer": SASRecConfig(dropout=0.0),
    "LiGR": SASRecConfig(dropout=0.0, gated=True),
    "HSTU of places": HSTUConfig(times=False, **ITEMS_ALONE),
    "HSTU of times": HSTUConfig(knows=["request"], **ITEMS_ALONE),
    "BERT4Rec in ranking": BERT4RecConfig(dropout=0.0),
    "BERT4Rec in training": BERT4RecConfig(dropout=0.0),
    "GRU4Rec": GRUConfig(times=False, hidden=20, **ITEMS_ALONE),
}
"""Peers by the names that benchmarks/peer_modules.py has for them."""


def drawn_inputs() -> tuple[Tensor, Tensor, Inputs]:
    """The item table, the items of all tokens and what a network reads of them, without their vectors."""
    generator = torch.Generator().manual_seed(1)
    items_VD = torch.randn(ITEMS, DIMENSION, generator=generator) / 4
    item_T = torch.randint(2, ITEMS, (sum(LENGTHS),), generator=generator)
    gap_T = torch.randint(0, 200_000, (sum(LENGTHS),), generator=generator) * 1000
    time_T = 1_600_000_000_000 + torch.cat([part.cumsum(0) for part in gap_T.split(LENGTHS)])
    place_T = torch.cat([torch.arange(length) for length in LENGTHS])
    request_T = torch.cat([torch.cat([part[1:], part[-1:] + 7_654_000]) for part in time_T.split(LENGTHS)])
    vectors = {"item": items_VD[item_T]}
    inputs = Inputs(vectors, items_VD.new_zeros(len(item_T), 0), time_T, place_T, Layout(torch.tensor(LENGTHS)))
    return items_VD, item_T, replace(inputs, request_time_T=request_T)


def network_of(config: NeuralConfig) -> torch.nn.Module:
    """With drawn weights, those that begin as ones or zeros, too."""
    manifest = Manifest(
        items=ITEMS,
        catalogue=ITEMS,
        features=[],
        time_unit="time",
        first_time=0,
        last_time=10**9,
        has_duration=False,
        split={},
        counts={},
        fingerprint="",
        shards={},
    )
    torch.manual_seed(0)
    network = config.network(manifest, DIMENSION, LONGEST).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
            if "bias_" in name:  # RecBole's cells have none
                parameter.zero_()
    return network


@torch.no_grad()
def measure(python: str) -> dict[str, Any]:
    items_VD, item_T, inputs = drawn_inputs()
    hidden_Q = torch.cat([torch.arange(len(item_T))[::4], inputs.layout.lengths_B.cumsum(0) - 1]).unique()
    assert inputs.request_time_T is not None
    found, cases = {}, {}
    for name, config in MODELS.items():
        network = network_of(config).train(name.endswith("training"))
        asked_Q = hidden_Q if network.training else torch.arange(len(item_T))
        found[name] = network(replace(inputs, asked_Q=asked_Q)).query_TD[asked_Q] @ items_VD.T
        cases[name] = network.state_dict()
    hidden_T = torch.zeros_like(item_T, dtype=torch.bool).index_fill_(0, hidden_Q, True)
    users = {
        "items": item_T.split(LENGTHS),
        "hidden_after": hidden_T.split(LENGTHS),
        "seconds": [
            torch.cat([times, request[-1:]]) // 1000
            for times, request in zip(inputs.time_T.split(LENGTHS), inputs.request_time_T.split(LENGTHS), strict=True)
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "asked.pt"), Path(folder, "answered.pt")
        torch.save({"table": items_VD, "users": users, "longest": LONGEST, "models": cases}, asked)
        command = [python, "-W", "ignore", "-m", "benchmarks.peer_modules", str(asked), str(answered)]
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        theirs: dict[str, Tensor] = torch.load(answered)
    return {
        name: {
            "largest_difference": float((ours_TV - theirs[name]).abs().max()),
            "largest_score": float(ours_TV.abs().max()),
        }
        for name, ours_TV in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default=str(ROOT / ".venv-peers/bin/python"), help="of the peers' environment")
    options = parser.parse_args()
    print(json.dumps(header("peer_models") | measure(options.python), indent=1))


if __name__ == "__main__":
    main()
