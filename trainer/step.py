"""One training step: negatives, lookup, forward, loss, backward; tables are updated inside the backward pass.

What reads no weight, ids on their way to other workers among it, is prepared while the step before is being computed
(the first two stages of TorchRec's TrainPipelineSparseDist).

Losses are divided by the weights of the global batch, and multiplied by the number of workers because DDP and TorchRec
both average gradients over them: so the gradient is the same on any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.sharding import kernels, reset_rows, shard
from embeddings.table_config import ITEM, Optimizer, table_of
from embeddings.tables import expected_lookups
from embeddings.touched import Touched
from embeddings.workers import Worker, gather_rows, own_rows
from ingest.data.batch import Batch
from ingest.data.manifest import Manifest
from ingest.features.feature import FIRST_VALUE
from trainer.candidates import CandidateReader, Known
from trainer.device import used_on
from trainer.hidden import with_hidden
from trainer.layers import Block
from trainer.losses import intent_loss
from trainer.models.registry import NeuralConfig
from trainer.negatives import Negatives, NegativeSampler
from trainer.recommender import Asked, Prediction, Recommender, build
from trainer.softmax import default_scores, full_softmax, sampled_softmax
from trainer.train_config import TrainConfig
from trainer.unknown import with_unknowns

L = TypeVar("L", Tensor, float)
PART_POWERS: dict[Optimizer, float] = {
    "sgd": 1.0,
    "adam": 0.5,
    "rowwise_adam": 0.5,
    "adagrad": 0.0,
    "rowwise_adagrad": 0.0,
}
"""The power of the global batch's part by which each optimizer's learning rate goes down with it. Adagrad's steps get
shorter with the sum of all squared gradients, in which those of smaller batches are more and larger."""


@dataclass(frozen=True)
class Losses:
    """Weighted sums over this worker's targets, without gradient."""

    item: Tensor
    intents: dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A step before any weight is read."""

    number: int
    asked: Asked
    negatives: Negatives | None
    """None where the loss is over the whole catalogue."""


class Step:
    """A sharded model with its optimizers.

    `counts`: how often each item is a target of training, [V], without which in-batch negatives can not be drawn.
    `known`: the data set, of which scores that know attributes or what is recent read more.
    """

    def __init__(
        self,
        model: NeuralConfig,
        config: TrainConfig,
        manifest: Manifest,
        worker: Worker,
        counts: NDArray | None = None,
        known: Known | None = None,
    ) -> None:
        self.config, self.manifest, self.worker = config, manifest, worker
        self.merged = config.reader.merged(worker.share)
        """How many of the reader's batches one of this worker holds."""
        self.part = min(worker.share * self.merged, 1.0)
        """Of the global batch that the learning rates are for, that of all workers there can be: what is in a step."""
        recommender = build(model, config, manifest)
        recommender.network.to(worker.device)
        recommender.scores.to(worker.device)
        if config.compile:
            for block in recommender.network.modules():
                if isinstance(block, Block):
                    block.feed_forward.compile(dynamic=True)  # for batches of any number of tokens
        begin, end = own_rows(manifest.items, worker.rank, worker.workers)
        self.first = min(max(begin, FIRST_VALUE), end)
        tables, full = recommender.tables, config.loss.kind == "full"
        tokens = config.reader.tokens * self.merged
        candidates = -(-manifest.items // worker.workers) if full else tokens + config.loss.negatives
        lookups = expected_lookups(tables.configs, tokens, candidates)
        self.parallel, self.planned = shard(
            recommender, tables.configs, config.tables, worker.device, config.seed, lookups
        )
        self.touched = Touched(self.parallel, tables)
        tables.collisions.place(worker.device, self._reset_rows)
        fused = set(self.parallel.fused_optimizer.params)
        self.dense = {name: p for name, p in self.parallel.named_parameters() if name not in fused and p.numel()}
        matrices = [p for name, p in self.dense.items() if p.dim() > 1 and table_of(name) is None]
        others = [p for name, p in self.dense.items() if p.dim() <= 1 or table_of(name) is not None]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.kernels = kernels(self.parallel.fused_optimizer)
        self.table_rates = [group["lr"] for group in self.parallel.fused_optimizer.param_groups]
        self.sampler = NegativeSampler(config.loss, manifest.items, config.seed, counts)
        self.knows, self.candidates = model.knows, CandidateReader(model, config, manifest, worker, known)
        self.intent_weight, self.hides = model.weight_of_intents, model.hides
        self.attributes = {feature.name for feature in manifest.features if feature.of == "item"}
        self.spread = tables.spreads[ITEM]
        self.slice_v = self.spread.indices(torch.arange(self.first, end if full else self.first, device=worker.device))
        self.scores = config.loss.scores_at_once or default_scores(worker.device)
        self.side = torch.cuda.Stream(worker.device, priority=-1) if worker.device.type == "cuda" else None
        self.following: Prepared | None = None
        """The step whose ids have not travelled yet."""

    @property
    def recommender(self) -> Recommender:
        """The model inside, its tables in their sharded form."""
        module: Recommender = self.parallel.module
        return module

    def _reset_rows(self, table: str, row_N: Tensor, values_ND: Tensor) -> None:
        reset_rows(self.parallel, table, row_N, values_ND)
        self.touched.mark(table, row_N)

    @property
    def ahead(self) -> bool:
        """Whether a step can be prepared before the one before is taken: not where values compete for rows, which are
        drawn anew when another value gets them."""
        return not self.config.tables.zch

    def prepare(self, batch: Batch, number: int) -> Prepared:
        """All of step `number` on a batch that `asking` gave which reads no weight: so it may come before the step
        before is taken, where `ahead`.

        Sizes that depend on the data are found here. On a GPU it has a stream of its own, so that finding them waits
        for nothing else.
        """
        with torch.cuda.stream(self.side):
            batch, negatives, item_C = self.with_unknowns(batch, number), None, self.slice_v
            if self.config.loss.kind == "sampled":
                target_Q = batch.in_table(batch.target_Q)
                negatives = self.sampler(number, gather_rows(target_Q)[0] if self.sampler.needs_targets else target_Q)
                item_C = torch.cat([target_Q, negatives.item_N])
            asked = self.recommender.ask(batch, *self.candidates.of(batch, item_C, number), training=True)
            if self.worker.workers == 1:  # nothing travels, but TorchRec copies some numbers to the device here
                asked.lookup.exchange()
        self.following = Prepared(number, asked, negatives)
        return self.following

    def _exchange(self, prepared: Prepared) -> None:
        """Let the ids of `prepared` travel, if they have not."""
        with torch.cuda.stream(self.side):
            prepared.asked.lookup.exchange()

    def losses(self, prepared: Prepared) -> Losses:
        """The losses of a step, as sums over this worker's targets."""
        batch = prepared.asked.batch
        with self._autocast():
            prediction: Prediction = self.parallel(prepared.asked)
            take = self._full if prepared.negatives is None else self._sampled
            item = take(prepared, prediction)
            intents = {
                name: intent_loss(logits_QL, batch.labels[name], batch.weight_Q)
                for name, logits_QL in prediction.intents.items()
            }
        return Losses(item, intents)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.worker.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _full(self, prepared: Prepared, prediction: Prediction) -> Tensor:
        batch = prepared.asked.batch
        return full_softmax(
            prediction.query[0],
            prediction.candidates_CD,
            self.spread.rows(batch.in_table(batch.target_Q)),
            batch.item_weight_Q,
            self.first,
            self.scores,
            prediction.pointed,
            prediction.adds_C,
            learned=self.config.tables.dimension,  # labels are facts
        )

    def _sampled(self, prepared: Prepared, prediction: Prediction) -> Tensor:
        batch, negatives = prepared.asked.batch, prepared.negatives
        assert negatives is not None
        target_Q = batch.in_table(batch.target_Q)
        sizes, adds_C = [len(target_Q), len(negatives.item_N)], prediction.adds_C
        positive_QD, negative_ND = prediction.candidates_CD.split(sizes)
        return sampled_softmax(
            prediction.query[0],
            positive_QD,
            negative_ND,
            target_Q,
            negatives,
            batch.item_weight_Q,
            self.scores,
            prediction.pointed,
            None if adds_C is None else adds_C.split(sizes),
        )

    def train(
        self,
        batch: Batch,
        number: int,
        weights: Sequence[float],
        epoch: int = 0,
        prepared: Prepared | None = None,
        warm: float | None = None,
    ) -> tuple[Losses, Tensor]:
        """Take step `number` of all, in `epoch`, both from 0; the losses, detached, and the norm of the dense gradient
        before it is cut, on the device, which may be at work on them still.

        `batch`: what `asking` gave. `weights`: the sums of `weights_of` over all workers. `prepared`: what `prepare`
        has given for the two, where it was called before. `warm`: where the warm-up is, `number` by default.
        """
        self.parallel.train()
        if prepared is None:
            if self.side is not None:  # the batch was made, and tables are written, on the current stream
                self.side.wait_stream(torch.cuda.current_stream())
            prepared = self.prepare(batch, number)
        self._exchange(prepared)
        if self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)
            used_on(torch.cuda.current_stream(), prepared)
        seed = (self.config.seed * 1_000_003 + number) * self.worker.workers + self.worker.rank
        torch.manual_seed(seed % 2**63)
        self._set_learning_rate(number if warm is None else warm, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        self._count_updates(number)
        losses = self.losses(prepared)
        if self.following is not None:
            self._exchange(self.following)  # while the forward pass is being computed
            self.following = None
        loss = self.mean(losses.item, sum(losses.intents.values()), weights)
        (loss * self.worker.workers).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.dense.values(), self.config.clip_norm)
        self.optimizer.step()
        detached = Losses(losses.item.detach(), {name: value.detach() for name, value in losses.intents.items()})
        return detached, norm.detach()

    def asking(self, batch: Batch, epoch: int) -> Batch:
        """`batch` with the targets that `epoch` asks for: all, but of a model that learns from hidden interactions; and
        which of them have an item loss. Its numbers of values depend on the data, so it is made on the CPU.
        """
        if self.hides is not None:
            batch = with_hidden(batch, self.hides, self.config.seed, epoch)
        if "history" in self.knows and not batch.known_Q.all():
            batch = replace(batch, scored_Q=batch.known_Q | batch.again_Q)
        return batch

    def weights_of(self, batch: Batch) -> Tensor:
        """What the item losses and the intents' losses of a batch that `asking` gave weigh, float64 [2]."""
        return torch.stack([batch.item_weight_Q.sum(), batch.weight_Q.sum()]).double()

    def with_unknowns(self, batch: Batch, number: int) -> Batch:
        """`batch` as step `number` sees it: a small share of its inputs is unknown."""
        return with_unknowns(batch, self.config.unknown_share, self.attributes, self.config.seed, number)

    def mean(self, item: L, intents: L | float, weights: Sequence[float]) -> L:
        """The mean loss from the sums of the item losses and of all intents' losses, and of their weights."""
        item_weight, weight = (max(value, 1e-12) for value in weights)
        return item / item_weight + intents * (self.intent_weight / weight)

    def _set_learning_rate(self, warm: float, epoch: int) -> None:
        warmup, decay = self.config.warmup_steps, self.config.decay**epoch
        factor = min(1.0, (warm + self.part) / warmup) if warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor * decay * self.part**0.5
        if self.config.decay < 1 or self.part < 1:
            tables = self.parallel.fused_optimizer
            scale = self.part ** PART_POWERS[self.config.tables.optimizer]
            for group, rate in zip(tables.param_groups, self.table_rates, strict=True):
                group["lr"] = rate * decay * scale
            tables.zero_grad()  # which hands the rates to the kernels

    def _count_updates(self, number: int) -> None:
        """Tell the kernels how many updates there were: an Adam corrects its means by that, and they take every forward
        pass for one, those of validations among them, and begin at 0 where training is resumed."""
        for kernel in self.kernels:
            kernel.iter.fill_(number)
            kernel.iter_cpu.fill_(number)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """The model's answer for the batch's targets, without dropout and without candidates."""
        self.parallel.eval()
        with self._autocast():
            asked = self.recommender.ask(batch, *self.candidates.of(batch, batch.target_Q[:0], None))
            prediction: Prediction = self.recommender(asked)
        return prediction
