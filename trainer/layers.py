"""The parts that the models share: input vectors, the timestamp's encoding, the causal Transformer.

T  tokens     D  model dimension     n  numeric features
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ingest.data.manifest import Manifest
from ingest.durations import parse_duration
from ingest.errors import InputError
from ingest.features.feature import PreparedFeature
from trainer.attention import Attention, Layout, Window

if TYPE_CHECKING:
    from trainer.models.base import TransformerConfig, WindowConfig

_HOUR, _DAY = parse_duration("1h"), parse_duration("1d")


IN_CACHE = 4096
"""Tokens that go through a feed-forward layer at once on a CPU, whose cache its wide activations would not fit."""


@dataclass(frozen=True)
class Inputs:
    """What a model reads of a batch."""

    vectors: dict[str, Tensor]
    """`item` and every category feature, each [T, D]."""
    numbers_Tn: Tensor
    time_T: Tensor
    position_T: Tensor
    layout: Layout
    request_time_T: Tensor | None = None
    """The time of the request after each token, of a model that knows it."""
    request_TD: Tensor | None = None
    """What is known of that request, which the item's vector has, too, but for networks that `read_request`."""
    asked_Q: Tensor | None = None
    """The tokens whose outputs are wanted, which a causal model need not know."""

    @property
    def now_T(self) -> Tensor:
        """The latest time that is known at each token."""
        return self.time_T if self.request_time_T is None else self.request_time_T


@dataclass(frozen=True)
class Output:
    """What a model says at each token k of interaction k + 1."""

    query_TD: Tensor
    """Its dot product with a row of the item table is that item's score."""
    intents: dict[str, Tensor] = field(default_factory=dict)
    """For each intent the logits of its labels, [T, labels]: label l is vocabulary index l + 2."""
    attention_TM: Tensor | None = None
    """The weight of each of the M intents, in the order of `intents`; rows sum to 1."""
    latent: dict[str, Tensor] = field(default_factory=dict)
    """Logits of the same labels, which no loss teaches what they mean, of a model that predicts no intents."""


class Dropout(nn.Module):
    """Dropout whose mask costs 16 random bits a value on CPU, where torch draws a number for each, one by one.

    There the rate is rounded to a multiple of 2 ** -16, and the values that stay are scaled accordingly. The bits come
    from NumPy's SFC64, seeded by torch's generator, which itself takes twice as long for them.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dropped = min(round(rate * 2**16), 2**16 - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
        kept = (bits >= self.dropped - 2**15).view(np.uint8)  # booleans take torch four times as long
        return x * (torch.from_numpy(kept).view(x.shape) * x.new_tensor(2**16 / (2**16 - self.dropped)))


class Waves(nn.Module):
    """Sines and cosines of a time: [T] -> [T, `width`].

    Of the day and the week with their harmonics and at periods spread evenly in the logarithm up to the log's span.
    Times count from the log's first.
    """

    def __init__(self, manifest: Manifest, waves: int = 12) -> None:
        super().__init__()
        self.span = max(manifest.last_time - manifest.first_time, 2)
        self.origin = manifest.first_time
        if manifest.time_unit == "time":
            calendar = [_DAY, _DAY / 2, _DAY / 3, 7 * _DAY, 3.5 * _DAY]
            shortest = min(_HOUR, self.span)
        else:
            calendar, shortest = [], 2
        ratio = (4 * self.span / shortest) ** (1 / (waves - 1))
        periods = [*calendar, *(shortest * ratio**i for i in range(waves))]
        frequency_w = 1 / torch.tensor(periods, dtype=torch.float64)
        self.frequency_w: Tensor
        self.register_buffer("frequency_w", frequency_w, persistent=False)
        self.width = 2 * len(periods)

    def forward(self, time_T: Tensor) -> Tensor:
        turns_Tw = (time_T - self.origin).double()[:, None] * self.frequency_w
        phase_Tw = (turns_Tw - turns_Tw.floor()).float() * (2 * math.pi)
        return torch.cat([phase_Tw.sin(), phase_Tw.cos()], dim=1)


class TimestampEncoding(nn.Module):
    """The embedding of the timestamp that all Transformers take as positional encoding: [T] -> [T, D].

    Waves of the time and the time since the interaction before, then a linear layer. The paper names the encoding and
    leaves its form open: this form is ours.
    """

    def __init__(self, manifest: Manifest, dimension: int) -> None:
        super().__init__()
        self.waves = Waves(manifest)
        self.linear = nn.Linear(self.waves.width + 2, dimension)
        self.gap_scale = math.log1p(self.waves.span)

    def forward(self, inputs: Inputs) -> Tensor:
        gap_T = F.pad((inputs.time_T[1:] - inputs.time_T[:-1]), (1, 0)).clamp(min=0)
        first_T = (inputs.position_T == 0).float()
        gap_T = torch.log1p(gap_T.float()) / self.gap_scale * (1 - first_T)
        waves_Tw = torch.cat([self.waves(inputs.time_T), gap_T[:, None], first_T[:, None]], dim=1)
        encoded: Tensor = self.linear(waves_Tw)
        return encoded


class Positions(nn.Module):
    """What tells the tokens of each of several encoders apart: a learned place, with `timestamp` its encoding too.

    [T] -> one [T, D] for each of `encoders`, side by side in one lookup and one product.
    """

    def __init__(self, manifest: Manifest, dimension: int, max_length: int, timestamp: bool, encoders: int = 1) -> None:
        super().__init__()
        self.encoders = encoders
        self.place = nn.Embedding(max_length, encoders * dimension)
        nn.init.normal_(self.place.weight, std=0.02)
        self.timestamp = TimestampEncoding(manifest, encoders * dimension) if timestamp else None

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        encoded_TX = self.place(inputs.position_T)
        if self.timestamp is not None:
            encoded_TX = encoded_TX + self.timestamp(inputs)
        parts: tuple[Tensor, ...] = encoded_TX.chunk(self.encoders, dim=1)
        return parts


class FeedForward(nn.Sequential):
    """With a `forward` of its own: of torch's torch.compile skips the code, and so would compile nothing."""

    def forward(self, x_TD: Tensor) -> Tensor:
        for module in self:
            x_TD = module(x_TD)
        return x_TD


class Block(nn.Module):
    """A pre-norm Transformer block: attention and a feed-forward layer, each added to its input."""

    def __init__(self, dimension: int, heads: int, dropout: float, expansion: int, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dimension)
        self.attention = Attention(dimension, heads, causal)
        self.feed_forward: nn.Sequential = FeedForward(
            nn.LayerNorm(dimension),
            nn.Linear(dimension, expansion * dimension),
            nn.GELU(),
            nn.Linear(expansion * dimension, dimension),
            Dropout(dropout),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        x_TD = self.add(x_TD, self.dropout(self.attention(self.attention_norm(x_TD), layout)), 0)
        if not x_TD.is_cpu or len(x_TD) <= IN_CACHE:
            return self.add(x_TD, self.feed_forward(x_TD), 1)
        return torch.cat([self.add(part, self.feed_forward(part), 1) for part in x_TD.split(IN_CACHE)])

    def add(self, x_TD: Tensor, y_TD: Tensor, half: int) -> Tensor:
        """The output of the attention (`half` 0) or of the feed-forward layer (1) added to its input."""
        return x_TD + y_TD


class SwiGLU(nn.Module):
    """A gated feed-forward layer (arXiv 2002.05202): [T, D] -> [T, D]."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(dimension, 2 * width, bias=False)
        self.narrow = nn.Linear(width, dimension, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TX, value_TX = self.widen(x_TD).chunk(2, dim=1)
        narrowed_TD: Tensor = self.narrow(F.silu(gate_TX) * value_TX)
        return narrowed_TD


class GatedBlock(Block):
    """LiGR's block (arXiv 2502.03417), that of eSASRec (arXiv 2508.06450): what is added is gated by its input."""

    def __init__(self, dimension: int, heads: int, dropout: float, expansion: int, causal: bool = True) -> None:
        super().__init__(dimension, heads, dropout, expansion, causal)
        width = expansion * dimension
        self.feed_forward = FeedForward(nn.LayerNorm(dimension), SwiGLU(dimension, width), Dropout(dropout))
        self.gates = nn.ModuleList(nn.Linear(dimension, dimension) for _ in range(2))

    def add(self, x_TD: Tensor, y_TD: Tensor, half: int) -> Tensor:
        return torch.addcmul(x_TD, self.gates[half](x_TD).sigmoid(), y_TD)


class Transformer(nn.Module):
    """Blocks with a final norm, [T, D] -> [T, D]."""

    def __init__(self, dimension: int, layers: int, config: TransformerConfig, causal: bool = True) -> None:
        super().__init__()
        block = GatedBlock if config.gated else Block
        self.blocks = nn.ModuleList(
            block(dimension, config.heads, config.dropout, config.expansion, causal) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dimension)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        for block in self.blocks:
            x_TD = block(x_TD, layout)
        out: Tensor = self.norm(x_TD)
        return out


class Joined(nn.Module):
    """{F (+) a (+) b ...} -> linear + norm: the feature vector and others of the given widths to [T, D].

    A product with a concatenation is the sum of the products with its parts. So nothing is concatenated: the feature
    vector's part comes from `project`, which takes it for all of a model's encoders at once, and the others are added.

    With `from_item` the linear layer begins as the first D inputs, which are the item's own vector, plus a small random
    mix of all: so the item that was watched reaches the output layer, which is the item table itself, from the first
    step on. The last encoder's input begins so (ours): without it IntentRec loses a quarter of its MRR on
    Retailrocket's small log, where people come back to an item; the encoders before do better without.
    """

    def __init__(self, widths: list[int], dimension: int, dropout: float, from_item: bool = False) -> None:
        super().__init__()
        self.widths = widths
        self.linear = nn.Linear(sum(widths), dimension)
        if from_item:
            with torch.no_grad():
                self.linear.weight += torch.eye(*self.linear.weight.shape)
        self.norm = nn.LayerNorm(dimension)
        self.dropout = Dropout(dropout)

    def forward(self, projected_TD: Tensor, *others: Tensor) -> Tensor:
        x_TD = projected_TD
        for other, weight in zip(others, self.linear.weight.split(self.widths, dim=1)[1:], strict=True):
            x_TD = torch.addmm(x_TD, other, weight.T)
        joined: Tensor = self.dropout(self.norm(x_TD))
        return joined


def project(joined: Sequence[Joined], features_TW: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    """The part of each of `joined` that comes from `scale` times the feature vector, bias included: one [T, D] each."""
    width = features_TW.shape[1]
    weight = torch.cat([part.linear.weight[:, :width] for part in joined])
    projected_TX = F.linear(features_TW, weight * scale, torch.cat([part.linear.bias for part in joined]))
    return projected_TX.chunk(len(joined), dim=1)


def side_by_side(linears: Iterable[nn.Module], x_TX: Tensor) -> Tensor:
    """The outputs of several linear layers of one input, as one matrix product: [T, sum of their widths]."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    return F.linear(x_TX, torch.cat(weights), torch.cat(biases))


class IntentHeads(nn.ModuleDict):
    """A linear layer for each intent, as one matrix product. `InputError` where an intent has no label."""

    def __init__(self, manifest: Manifest, dimension: int) -> None:
        if empty := [name for name, count in manifest.labels.items() if count < 1]:
            raise InputError(f"intent {empty[0]!r} has no value at all in the training data")
        super().__init__({f"intent_{name}": nn.Linear(dimension, count) for name, count in manifest.labels.items()})
        self.sizes = manifest.labels

    def forward(self, encoded_TD: Tensor) -> dict[str, Tensor]:
        """The logits of every intent: [T, D] -> [T, labels] each."""
        logits = side_by_side(self.values(), encoded_TD).split(list(self.sizes.values()), dim=1)
        return dict(zip(self.sizes, logits, strict=True))


class FeatureVector(nn.Module):
    """F_k / `scale`: the item's vector (+) those of all features (+) normalised numbers, [T, `width`].

    Rows are drawn small, for the output layer; as inputs they are scaled by sqrt(D), as in the Transformer and SASRec.
    `project` does so, on the weights.
    """

    def __init__(self, features: Sequence[PreparedFeature], dimension: int) -> None:
        super().__init__()
        numbers = sum(feature.is_number for feature in features)
        self.scale = math.sqrt(dimension)
        self.width = dimension * (1 + len(features) - numbers) + numbers

    def forward(self, inputs: Inputs) -> Tensor:
        return torch.cat([*inputs.vectors.values(), inputs.numbers_Tn / self.scale], dim=1)


class ShortTerm(nn.Module):
    """S_k: one causal attention layer over F_j with T_k - T_j <= `window`; F_j projected, [T, D] -> [T, D]."""

    def __init__(self, width: int, dimension: int, heads: int, dropout: float, window: int) -> None:
        super().__init__()
        self.window = window
        self.join = Joined([width], dimension, dropout)
        self.attention = Attention(dimension, heads)
        self.norm = nn.LayerNorm(dimension)

    def forward(self, projected_TD: Tensor, encoded_TD: Tensor, inputs: Inputs) -> Tensor:
        x_TD = self.join(projected_TD) + encoded_TD
        window = Window(inputs.layout, inputs.time_T, self.window)
        short_TD: Tensor = self.norm(x_TD + self.attention(x_TD, inputs.layout, window))
        return short_TD


class TwoEncoders(nn.Module):
    """Two Transformers, of which the second also sees what a bridge makes of the first one's output.

    {F (+) S} -> intent encoder -> bridge -> {F (+) S (+) bridge} -> item encoder -> query

    Without a window there is no S.
    """

    def __init__(self, config: WindowConfig, manifest: Manifest, dimension: int, max_length: int) -> None:
        super().__init__()
        self.acts = "intents" in config.knows
        self.features = FeatureVector(manifest.features if config.features else [], dimension)
        encoders = 2 if config.window is None else 3
        self.positions = Positions(manifest, dimension, max_length, config.times, encoders)
        width, heads, dropout = self.features.width, config.heads, config.dropout
        self.short_term = None
        if config.window is not None:
            self.short_term = ShortTerm(width, dimension, heads, dropout, parse_duration(config.window))
        short = [dimension] if self.short_term else []
        self.intent_input = Joined([width, *short], dimension, dropout)
        self.intent_encoder = Transformer(dimension, config.intent_layers, config)
        self.make_bridge(manifest, dimension)
        self.item_input = Joined([width, *short, dimension], dimension, dropout, from_item=True)
        self.item_encoder = Transformer(dimension, config.item_layers, config)

    def make_bridge(self, manifest: Manifest, dimension: int) -> None:
        """Make the layers that `bridge` takes."""
        raise NotImplementedError

    def bridge(self, encoded_TD: Tensor) -> tuple[Any, ...]:
        """What the item encoder sees of the intent encoder's output, [T, D], and what else `Output` has."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Output:
        *window_TD, intent_TD, item_TD = self.positions(inputs)
        inner = [self.short_term.join] if self.short_term else []
        *recent_F, intent_F, item_F = project(
            [*inner, self.intent_input, self.item_input], self.features(inputs), self.features.scale
        )
        short_TD = [self.short_term(*recent_F, *window_TD, inputs)] if self.short_term else []
        x_TD = self.intent_input(intent_F, *short_TD) + intent_TD
        bridge_TD, *intents = self.bridge(self.intent_encoder(x_TD, inputs.layout))
        x_TD = self.item_input(item_F, *short_TD, bridge_TD) + item_TD
        return Output(self.item_encoder(x_TD, inputs.layout), *intents)
