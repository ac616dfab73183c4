"""The peers of `benchmarks.peer_models`, in their own environment: nothing of the project is imported here.

Reads our networks' weights, puts them where RecTools 0.19 and RecBole 1.2 have theirs, and writes the scores of all
items at all places of each user. A user is padded at the left to the longest sequence, in a batch alone, because
RecTools counts learned places from the newest interaction and ours, but for BERT4Rec, from the oldest.

What they lack of ours is applied here after theirs: the final norm, which RecTools' blocks and layers do not have. What
ours lack: RecBole's cells have no biases (ours are zeros), and its items are not scaled by the root of the dimension
(here its table is).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from rectools.models.nn.transformers.hstu import STULayers
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.net_blocks import LearnableInversePositionalEncoding, PreLNTransformerLayers
from rectools.models.nn.transformers.torch_backbone import TransformerTorchBackbone
from torch import Tensor, nn

Weights = dict[str, Tensor]
HEADS, LAYERS = 2, 2


def part(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def attention_and_norms(block: Any, ours: Weights) -> None:
    block.multi_head_attn.in_proj_weight.copy_(ours["attention.qkv.weight"])
    block.multi_head_attn.in_proj_bias.copy_(ours["attention.qkv.bias"])
    block.multi_head_attn.out_proj.load_state_dict(part(ours, "attention.out."))
    block.layer_norm_1.load_state_dict(part(ours, "attention_norm."))
    block.layer_norm_2.load_state_dict(part(ours, "feed_forward.0."))


def pre_norm(ours: Weights, dimension: int, longest: int) -> nn.Module:
    layers = PreLNTransformerLayers(LAYERS, dimension, HEADS, 0.0)
    for number, block in enumerate(layers.transformer_blocks):
        own = part(ours, f"encoder.blocks.{number}.")
        attention_and_norms(block, own)
        block.feed_forward.ff_linear_1.load_state_dict(part(own, "feed_forward.1."))
        block.feed_forward.ff_linear_2.load_state_dict(part(own, "feed_forward.3."))
    return layers


def ligr(ours: Weights, dimension: int, longest: int) -> nn.Module:
    layers = LiGRLayers(LAYERS, dimension, HEADS, 0.0)
    for number, block in enumerate(layers.transformer_blocks):
        own = part(ours, f"encoder.blocks.{number}.")
        attention_and_norms(block, own)
        gate, value = own["feed_forward.1.widen.weight"].chunk(2)
        block.feed_forward.ff_linear_1.weight.copy_(gate)
        block.feed_forward.ff_linear_3.weight.copy_(value)
        block.feed_forward.ff_linear_2.weight.copy_(own["feed_forward.1.narrow.weight"])
        block.gating_linear_1.load_state_dict(part(own, "gates.0."))
        block.gating_linear_2.load_state_dict(part(own, "gates.1."))
    return layers


def hstu(ours: Weights, dimension: int, longest: int) -> nn.Module:
    size, times = dimension // HEADS, "encoder.blocks.0.gap" in ours
    layers = STULayers(LAYERS, dimension, HEADS, size, size, longest, times, True, dropout_rate=0.0, epsilon=1e-5)
    for number, block in enumerate(layers.stu_blocks):
        own = part(ours, f"encoder.blocks.{number}.")
        block.norm_input.load_state_dict(part(own, "norm."))
        block.norm_attn_output.load_state_dict(part(own, "attended_norm."))
        block.uvqk_proj.copy_(own["uvqk.weight"].T)
        block.output_mlp.load_state_dict(part(own, "out."))
        block.rel_attn.pos_weights[:longest] = own["place"].flip(0)
        if times:
            block.rel_attn.time_weights.copy_(own["gap"])
    return layers


def backbone_of(layers: nn.Module, dimension: int, longest: int, **options: Any) -> TransformerTorchBackbone:
    places = LearnableInversePositionalEncoding(True, longest, dimension, use_scale_factor=True)
    nothing: dict[str, Any] = {"item_model": None, "similarity_module": None}
    return TransformerTorchBackbone(
        HEADS, 0.0, pos_encoding_layer=places, transformer_layers=layers, **nothing, **options
    ).eval()


def norm_of(ours: Weights, dimension: int) -> nn.Module:
    norm = nn.LayerNorm(dimension)
    norm.load_state_dict(part(ours, "encoder.norm."))
    return norm


def rectools(make: Callable[[Weights, int, int], nn.Module]) -> Callable[..., list[Tensor]]:
    def queries(ours: Weights, table_VD: Tensor, users: dict[str, Any], longest: int) -> list[Tensor]:
        dimension = table_VD.shape[1]
        layers, norm = make(ours, dimension, longest), norm_of(ours, dimension)
        backbone = backbone_of(layers, dimension, longest, use_key_padding_mask=make is not hstu)
        places = backbone.pos_encoding_layer.pos_emb.weight
        found = []
        for item_L, seconds_L in zip(users["items"], users["seconds"], strict=True):
            length = len(item_L)
            padded = {
                "x": nn.functional.pad(item_L, (longest - length, 0))[None],
                "unix_ts": nn.functional.pad(seconds_L, (longest - length, 0))[None],
            }
            places[:length] = ours["entry.positions.place.weight"][:length].flip(0)
            found.append(norm(backbone.encode_sessions(padded, table_VD)[0, longest - length :]))
        return found

    return queries


def bert4rec(training: bool) -> Callable[..., list[Tensor]]:
    def queries(ours: Weights, table_VD: Tensor, users: dict[str, Any], longest: int) -> list[Tensor]:
        dimension, mask = table_VD.shape[1], torch.ones(1, dtype=torch.int64)
        layers, norm = pre_norm(ours, dimension, longest), norm_of(ours, dimension)
        backbone = backbone_of(layers, dimension, longest + 1, use_causal_attn=False, use_key_padding_mask=True)
        places, with_mask_VD = backbone.pos_encoding_layer.pos_emb.weight, table_VD.clone()
        with_mask_VD[1] = ours["hidden"] / dimension**0.5

        def encoded(x_L: Tensor) -> Tensor:
            length = len(x_L)
            places[:length] = ours["place.weight"][:length]
            padded = {"x": nn.functional.pad(x_L, (longest + 1 - length, 0))[None]}
            return norm(backbone.encode_sessions(padded, with_mask_VD)[0, -length:])

        found = []
        for item_L, hidden_L in zip(users["items"], users["hidden_after"], strict=True):
            if training:
                x_L = torch.cat([item_L, mask])
                x_L[1:][hidden_L] = 1
                found.append(encoded(x_L)[1:][hidden_L])
            else:
                found += [encoded(torch.cat([item_L[: n + 1], mask]))[-1:] for n in range(len(item_L))]
        return found

    return queries


def gru4rec(ours: Weights, table_VD: Tensor, users: dict[str, Any], longest: int) -> list[Tensor]:
    from recbole.model.sequential_recommender import GRU4Rec

    class Catalogue:
        def num(self, field: str) -> int:
            return len(table_VD)

    fields = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "NEG_PREFIX": "no_", "LIST_SUFFIX": "_list"}
    width = ours["encoder.out.weight"].shape[1]
    config = fields | {"ITEM_LIST_LENGTH_FIELD": "length", "MAX_ITEM_LIST_LENGTH": longest, "device": "cpu"}
    config |= {"embedding_size": table_VD.shape[1], "hidden_size": width, "num_layers": 1}
    model = GRU4Rec(config | {"loss_type": "CE", "dropout_prob": 0.0}, Catalogue()).eval()
    model.item_embedding.weight.copy_(table_VD * table_VD.shape[1] ** 0.5)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        getattr(model.gru_layers, name).copy_(ours[f"encoder.layers.0.{name}"])
    model.dense.load_state_dict(part(ours, "encoder.out."))
    found = []
    for item_L in users["items"]:
        prefixes = [nn.functional.pad(item_L[: n + 1], (0, longest - n - 1)) for n in range(len(item_L))]
        found.append(model(torch.stack(prefixes), torch.arange(1, len(item_L) + 1)))
    return found


PEERS: dict[str, Callable[..., list[Tensor]]] = {
    "Transformer": rectools(pre_norm),
    "LiGR": rectools(ligr),
    "HSTU of places": rectools(hstu),
    "HSTU of times": rectools(hstu),
    "BERT4Rec in ranking": bert4rec(training=False),
    "BERT4Rec in training": bert4rec(training=True),
    "GRU4Rec": gru4rec,
}


@torch.no_grad()
def main(asked: str, answered: str) -> None:
    case = torch.load(asked)
    scores = {
        name: torch.cat(PEERS[name](ours, case["table"], case["users"], case["longest"])) @ case["table"].T
        for name, ours in case["models"].items()
    }
    torch.save(scores, answered)


if __name__ == "__main__":
    main(*sys.argv[1:])
