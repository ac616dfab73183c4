"""HSTU's kernels in Triton's interpreter, which has to be chosen before they are imported: a process of its own.

TRITON_INTERPRET=1 python -m tests.trainer.interpreted DATA
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

import trainer.pointwise
from ingest.data.manifest import Manifest, load_manifest
from tests.small import HOUR, train_config
from trainer.attention import Layout
from trainer.layers import Inputs
from trainer.models.hstu import HSTUConfig
from trainer.recommender import build

LENGTHS = [1, 3, 15, 16, 17, 20]


def compare(manifest: Manifest, heads: int, tile: int, times: bool, request_known: bool) -> None:
    """Outputs, and gradients of the inputs and of every weight, with the kernels and padded."""
    torch.manual_seed(0)
    trainer.pointwise.TILE = tile
    model = HSTUConfig(heads=heads, dropout=0.0, times=times)
    encoder = build(model, train_config(), manifest).network.encoder
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_TD = torch.randn(sum(LENGTHS), 8, requires_grad=True)
    time_T = torch.cat([torch.randint(0, 5 * HOUR, (length,)).cumsum(0) for length in LENGTHS])
    place_T = torch.cat([torch.arange(length) for length in LENGTHS])
    inputs = Inputs({}, x_TD[:, :0], time_T, place_T, Layout(torch.tensor(LENGTHS)))
    if request_known:
        inputs = replace(inputs, request_time_T=time_T + torch.randint(0, 9 * HOUR, time_T.shape))
    weight_TD, wanted, found = torch.randn_like(x_TD), [x_TD, *encoder.parameters()], []
    for kind in ("padded", "jagged"):
        for block in encoder.blocks:
            block.padded = getattr(block, kind)
        out_TD = encoder(x_TD, inputs)
        found.append([out_TD, *torch.autograd.grad((out_TD * weight_TD).sum(), wanted)])
    for padded, jagged in zip(*found, strict=True):
        assert padded.abs().max() > 1e-3
        torch.testing.assert_close(jagged, padded, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    for heads, tile in ((1, 32), (2, 16)):
        for times, request_known in ((False, False), (True, False), (True, True)):
            compare(load_manifest(sys.argv[1]), heads, tile, times, request_known)
