"""One training step: draw negatives, look up, predict, lose, go back; tables are updated inside the backward pass.

The loss is divided by the weight of the global batch, and multiplied by the number of workers because DDP and TorchRec
both average gradients over them: so the gradient is the same on any number of workers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.sharding import reset_rows, shard
from embeddings.tables import expected_lookups
from ingest.batch import Batch
from ingest.manifest import Manifest
from trainer.config import TrainConfig
from trainer.losses import NegativeSampler, full_softmax, intent_loss, sampled_softmax
from trainer.models.config import IntentRecConfig, NeuralConfig
from trainer.recommender import Prediction, Recommender, build
from trainer.workers import Worker


@dataclass(frozen=True)
class Losses:
    """Weighted sums over this worker's targets, without gradient."""

    item: Tensor
    intents: dict[str, Tensor]


class Step:
    """A sharded model with its optimizers."""

    def __init__(self, model: NeuralConfig, config: TrainConfig, manifest: Manifest, worker: Worker) -> None:
        self.config, self.manifest, self.worker = config, manifest, worker
        recommender = build(model, config, manifest).to_device(worker.device)
        tables, full = recommender.tables, config.loss.kind == "full"
        candidates = manifest.items if full else config.reader.tokens + config.loss.negatives
        lookups = expected_lookups(tables.keys, config.reader.tokens, candidates)
        self.parallel, self.planned = shard(
            recommender, tables.configs, config.tables, worker.device, config.seed, lookups
        )
        if tables.collisions is not None:
            tables.collisions.place(worker.device, functools.partial(reset_rows, self.parallel))
        fused = set(self.parallel.fused_optimizer.params)
        self.dense = {name: p for name, p in self.parallel.named_parameters() if name not in fused and p.numel()}
        self.optimizer = torch.optim.AdamW(
            self.dense.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.sampler = NegativeSampler(config.loss, manifest.items, config.seed)
        self.intent_weight = model.intent_weight if isinstance(model, IntentRecConfig) else 0.0
        self.catalogue_V = torch.arange(manifest.items if full else 0, device=worker.device)

    @property
    def recommender(self) -> Recommender:
        """The model inside, its tables in their sharded form."""
        module: Recommender = self.parallel.module
        return module

    def losses(self, batch: Batch, number: int) -> Losses:
        """The losses of `batch` in step `number`, as sums over this worker's targets."""
        weight_Q = batch.weight_Q
        if self.config.loss.kind == "full":
            prediction: Prediction = self.parallel(batch, self.catalogue_V)
            item = full_softmax(
                prediction.query_QD, prediction.candidates_CD, batch.target_Q, weight_Q, self.config.loss.chunk
            )
        else:
            negative_N = self.sampler.draw(number).to(batch.target_Q.device)
            prediction = self.parallel(batch, torch.cat([batch.target_Q, negative_N]))
            positive_QD, negative_ND = prediction.candidates_CD.split([len(batch.target_Q), len(negative_N)])
            item = sampled_softmax(
                prediction.query_QD,
                positive_QD,
                negative_ND,
                batch.target_Q,
                negative_N,
                self.sampler.log_expected(negative_N),
                weight_Q,
            )
        intents = {
            name: intent_loss(logits_QL, batch.labels[name], weight_Q) for name, logits_QL in prediction.intents.items()
        }
        return Losses(item, intents)

    def train(self, batch: Batch, number: int, global_weight: float) -> tuple[Losses, float]:
        """Take step `number` (from 0); the losses, detached, and the dense gradient's norm before it is cut.

        `global_weight`: the sum of the targets' weights over all workers.
        """
        self.parallel.train()
        torch.manual_seed((self.config.seed * 1_000_003 + number) * self.worker.workers + self.worker.rank)
        self._set_learning_rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(batch, number)
        loss = losses.item + self.intent_weight * sum(losses.intents.values())
        (loss * (self.worker.workers / max(global_weight, 1e-12))).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.dense.values(), self.config.clip_norm)
        self.optimizer.step()
        detached = Losses(losses.item.detach(), {name: value.detach() for name, value in losses.intents.items()})
        return detached, float(norm)

    def _set_learning_rate(self, number: int) -> None:
        warmup = self.config.warmup_steps
        factor = min(1.0, (number + 1) / warmup) if warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """The model's answer for the batch's targets, without dropout and without candidates."""
        self.parallel.eval()
        prediction: Prediction = self.recommender(batch, batch.target_Q[:0])
        return prediction
