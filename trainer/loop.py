"""The training of one neural model: epochs of steps, validation, checkpoints, early stop, resume.

All workers take the same number of steps: one that has run out of data goes on with empty batches until all have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from embeddings.plan import describe_plan
from embeddings.workers import LeavingError, Worker, gather_objects, lockstep_batches, total
from ingest.data.batch import Batch
from ingest.data.items import ItemTable, load_items
from ingest.data.manifest import Manifest, load_manifest
from ingest.data.order import Position, Remaining
from ingest.data.reader import Reader, ahead
from ingest.data.transitions import target_counts
from ingest.errors import InputError
from ingest.storage import join
from trainer.candidates import Known
from trainer.checkpoint import Checkpoints
from trainer.device import on_device
from trainer.memory import give_back_free, peak_gib, reset_peak
from trainer.models.registry import NeuralConfig
from trainer.monitor import Monitor
from trainer.progress import Progress, identity
from trainer.step import Prepared, Step
from trainer.totals import Totals
from trainer.train_config import TrainConfig


@dataclass(frozen=True)
class Validation:
    """What validating gives: `metrics` by name, accuracy and mean attention weight by intent."""

    metrics: Mapping[str, float]
    intents: Mapping[str, float]
    attention: Mapping[str, float]


Validate = Callable[[Step], Validation]
Found = tuple[Batch, tuple[Remaining, Tensor]]
"""A batch, what is left of the epoch after it, and what its losses weigh."""


@dataclass(frozen=True)
class Run:
    """One model's training: what, from which data, and where to."""

    name: str
    model: NeuralConfig
    train: TrainConfig
    data: str
    """Folder of the prepared data set."""
    folder: str
    """Where checkpoints and TensorBoard go."""
    description: str = ""
    """The config as text, for TensorBoard."""

    @property
    def checkpoints(self) -> str:
        return join(self.folder, "checkpoints")


class Trainer:
    """Trains one model in every worker of the process group.

    `validate` ranks the catalogue for the validation split; it is called by all workers at the end of each epoch.
    `items`: those of the data set, where they are in memory already.
    """

    def __init__(self, run: Run, worker: Worker, validate: Validate, items: ItemTable | None = None) -> None:
        self.run, self.worker, self.validate, self.config = run, worker, validate, run.train
        self.manifest: Manifest = load_manifest(run.data)
        self.items = load_items(run.data, self.manifest, counts=False) if items is None else items
        counts = target_counts(run.data, self.manifest.items) if run.train.loss.needs_counts else None
        self.step = Step(run.model, run.train, self.manifest, worker, counts, Known(run.data, self.items))
        self.checkpoints = Checkpoints(run.checkpoints, run.train, worker)
        self.reader = Reader(
            run.data,
            self.manifest,
            self.items,
            "train",
            run.train.reader,
            rank=worker.rank,
            workers=worker.workers,
            seed=run.train.seed,
            merged=self.step.merged,
            features=run.model.needs_columns,
        )
        self.progress = Progress()
        self.left: Remaining | None = None
        """What this worker has left of the epoch after the last step, where none was taken in this epoch None."""
        self.unread: dict[int, Remaining] = {}
        """The batches of the steps whose losses were not read yet."""
        self.identity = identity(run.model, run.train, self.manifest.fingerprint)

    def fit(self) -> Progress:
        """Train to the last epoch or the early stop, from the newest sound checkpoint on if there is one.

        Raises `LeavingError` on all workers where one was asked to leave, after a checkpoint of that very step.
        """
        self.worker.at(f"{self.run.name}: loads the last checkpoint", None)
        self.progress = self.checkpoints.resume(self.step, self.identity)
        if self.progress.finished:
            return self.progress
        reset_peak(self.worker.device)
        network, folder = self.step.recommender.network, join(self.run.folder, "tensorboard")
        self.monitor = Monitor(folder, self.worker, self.run.name, network, self.progress.step)
        self.monitor.text("config", f"```yaml\n{self.run.description}\n```")
        self.monitor.text("plan", describe_plan(self.step.planned))
        self.monitor.flush()
        try:
            while not self.progress.finished:
                self._epoch()
                give_back_free()
            self.checkpoints.wait()
            self._show_checkpoint()
        except LeavingError:
            self._leave()
            raise
        finally:
            self.checkpoints.close()
            self.monitor.close()
        return self.progress

    def _epoch(self) -> None:
        self.monitor.reset()
        self.left = None
        begins, self.epoch_tokens, first_step = time.perf_counter(), 0, self.progress.step
        began, steps_began = begins - self.progress.seconds, begins - self.progress.steps_seconds
        users = sum(shard.rows for shard in self.manifest.shards["train"])
        self.totals = Totals(self.worker.device, self.progress.losses)
        with self.worker.progress(users, self._caption()) as bar:
            for (batch, (left, _)), sums, prepared in self._prepared():
                *counts, written, failed, wanted = sums
                self.checkpoints.count(written, failed)
                self.unread[self.progress.step + 1] = left
                self._train_step(batch, counts, prepared, bar)
                self.left = left
                now = time.perf_counter()
                self.progress.seconds, self.progress.steps_seconds = now - began, now - steps_began
                every = self.config.checkpoint_steps
                if self.checkpoints.wants(wanted) or (every and self.progress.step % every == 0):
                    self._checkpoint(left)
        self._read_totals()
        trained = time.perf_counter() - begins
        self._end_epoch(began)
        self._tell_epoch(first_step, trained, time.perf_counter() - begins - trained)

    def _prepared(self) -> Iterator[tuple[Found, list[float], Prepared | None]]:
        """The epoch's steps: a batch, the sums of `_counts`, and what was prepared of the step before the one before it
        is taken."""
        nothing, device = self.reader.builder.empty(), self.worker.device
        with torch.cuda.stream(self.step.side):
            empty = nothing.to(device), (Remaining(), self.step.weights_of(nothing))
        batches = on_device(self._asked(), device, self.step.side)
        doing, first = f"{self.run.name} epoch {self.progress.epoch + 1}, step", self.progress.step
        steps = lockstep_batches(batches, empty, self.worker, self._counts, doing, first, goes_on=True)
        if not self.step.ahead:
            return ((found, sums, None) for found, sums in steps)
        numbered = enumerate(steps, self.progress.step)
        return ahead(((found, sums, self.step.prepare(found[0], number)) for number, (found, sums) in numbered), 1)

    def _asked(self) -> Iterator[Found]:
        """This worker's batches, with what is left of the epoch after each, and its weights."""
        position = Position.from_json(self.progress.position) if self.progress.position else None
        stream = self.reader.epoch(self.progress.epoch, position)
        while True:
            with self.monitor.waiting_for_data():
                found = next(stream, None)
            if found is None:
                return
            batch, left = found
            weighted, weight_Q = self.config.duration_weights, batch.weight_Q
            bounded_Q = weight_Q.clamp(max=self.config.most_weight) if weighted else torch.ones_like(weight_Q)
            batch = self.step.asking(replace(batch, weight_Q=bounded_Q), self.progress.epoch)
            yield batch, (left, self.step.weights_of(batch))

    def _counts(self, found: Found) -> Tensor:
        """The weights of a batch, its tokens, users and targets, and how checkpoints stand; float64 [8]."""
        batch, (_, weights) = found
        tokens = batch.tokens if batch.rows else 0
        return torch.cat(
            [weights, weights.new_tensor([tokens, batch.rows, len(batch.target_Q), *self.checkpoints.votes()])]
        )

    def _checkpoint(self, left: Remaining) -> None:
        """One inside an epoch, of which this worker has `left` still to come."""
        self.worker.at(f"{self.run.name}: saves step {self.progress.step}", None)
        self._read_totals()
        self.progress.position = Position(self.progress.epoch, tuple(gather_objects(left.blocks()))).to_json()
        self._gather_skipped()
        self.checkpoints.save(self.step, self.progress, self.identity)
        self.monitor.reset()

    def _leave(self) -> None:
        """A checkpoint of the last step taken, where there is none yet; complete when this returns."""
        if self.left is not None:
            self._checkpoint(self.left)
        self.checkpoints.wait()

    def _show_checkpoint(self) -> None:
        """What checkpoints took since the last call goes to TensorBoard and to who watches."""
        figures = self.checkpoints.figures
        self.monitor.scalars(self.progress.step, figures)
        if self.worker.first and "checkpoint/copy(s)" in figures:
            self.monitor.watch(checkpoint_copy_seconds=figures["checkpoint/copy(s)"])
        if self.worker.first and self.checkpoints.completed is not None and "checkpoint/complete(s)" in figures:
            self.monitor.watch(
                checkpoint_seconds=figures["checkpoint/complete(s)"],
                checkpoint_timestamp_seconds=self.checkpoints.completed,
            )
        self.checkpoints.figures = {}

    def _train_step(self, batch: Batch, sums: list[float], prepared: Prepared | None, bar: Any) -> None:
        *weights, tokens, users, targets = sums
        losses, norm = self.step.train(
            batch, self.progress.step, weights, self.progress.epoch, prepared, self.progress.warm
        )
        self.progress.step += 1
        self.progress.warm += self.step.part
        self.progress.targets += int(targets)
        self.epoch_tokens += int(tokens)
        self.monitor.count(int(tokens), len(batch.target_Q), batch.rows > 0)
        values = total(torch.stack([losses.item, *losses.intents.values()]).double())
        loss = self.step.mean(values[0], values[1:].sum(), weights)
        self.totals.add(self.progress.step, ["item", *losses.intents], values, loss, norm)
        self.progress.weights = [sum(pair) for pair in zip(self.progress.weights, weights, strict=True)]
        if bar is not None:
            bar.update(int(users))
        if self.progress.step % self.config.log_steps == 0:
            self._log(bar)

    def _read_totals(self) -> float:
        """Bring the losses' sums into the progress; the last gradient's norm. Raises where a step was not finite."""
        self.progress.losses, norm, bad = self.totals.read()
        unread, self.unread = self.unread, {}
        if bad is not None:
            self.checkpoints.wait()
            batches = gather_objects(unread[bad.step].batch(self.reader.shards) if bad.step in unread else "")
            of = "; ".join(f"worker {rank}: {rows}" for rank, rows in enumerate(batches) if rows)
            raise InputError(
                f"model {self.run.name}: the loss is {bad.loss} and the gradient's norm {bad.norm} "
                f"at step {bad.step} of epoch {self.progress.epoch}, so training stops before anything is "
                f"saved: try a lower train.learning_rate or train.tables.learning_rate. The step's batch: {of}"
            )
        return norm

    def _log(self, bar: Any) -> None:
        """A point of the curve: the mean losses since the one before."""
        progress, norm = self.progress, self._read_totals()
        item_weight, weight = (max(value, 1e-12) for value in progress.weights)
        item, *intents = progress.losses.values()
        loss = self.step.mean(item, sum(intents), progress.weights)
        parts = {name: value / (item_weight if name == "item" else weight) for name, value in progress.losses.items()}
        learning_rate = self.step.optimizer.param_groups[0]["lr"]
        self.monitor.scalars(progress.step, self._lookup_shares())
        self._show_checkpoint()
        throughput = self.monitor.point(progress.step, loss, parts, norm, learning_rate)
        progress.add_to_curve(loss)
        progress.losses, progress.weights = {}, [0.0, 0.0]
        self.totals.restart()
        if bar is not None:
            bar.set_description(self._caption(loss, throughput))

    def _lookup_shares(self) -> dict[str, float]:
        """Each table's share of the different rows that workers have looked up since the last point."""
        tables = self.step.recommender.tables
        own = torch.tensor(list(tables.lookups.values()), dtype=torch.float64, device=self.worker.device)
        counts = total(own).tolist()
        tables.lookups = dict.fromkeys(tables.names, 0)
        everything = max(sum(counts), 1.0)
        return {
            f"tables/lookups(%)/{n}": 100 * count / everything for n, count in zip(tables.names, counts, strict=True)
        }

    def _caption(self, loss: float | None = None, throughput: float = 0.0) -> str:
        caption = f"{self.run.name} epoch {self.progress.epoch + 1}/{self.config.epochs}"
        return caption if loss is None else f"{caption} loss {loss:.3f} {throughput:,.0f} tokens/s"

    def _gather_skipped(self) -> None:
        """What any worker's reader has set aside goes into the progress, and its count to TensorBoard."""
        if self.config.reader.on_bad_shard == "error":
            return
        progress = self.progress
        found = {(path, group, rows, reason) for path, group, rows, reason in progress.skipped}
        for part in gather_objects(self.reader.skipped):
            found.update((entry.path, entry.row_group, entry.rows, entry.reason) for entry in part)
        progress.skipped = sorted(found)
        counts = {"data/skipped_row_groups": len(found), "data/skipped_rows": sum(entry[2] for entry in found)}
        self.monitor.scalars(progress.step, counts)

    def _end_epoch(self, began: float) -> None:
        progress = self.progress
        self._gather_skipped()
        if not progress.step:
            raise InputError(
                f"model {self.run.name}: there was nothing to train on in {self.run.data}: every row group of the "
                f"training data was set aside, the first because {progress.skipped[0][3] if progress.skipped else ''}"
            )
        self.checkpoints.ask()
        validation = self.validate(self.step)
        self.checkpoints.wait_for_the_one_before(self.progress.step)
        value = validation.metrics[self.config.metric]
        progress.seconds = time.perf_counter() - began
        progress.epoch, progress.position = progress.epoch + 1, None
        progress.losses, progress.weights = {}, [0.0, 0.0]
        progress.validation_curve.append((progress.epoch, value))
        better = progress.best is None or value > progress.best
        if better:
            progress.best, progress.best_epoch = value, progress.epoch
        progress.since_best = 0 if better else progress.since_best + 1
        progress.finished = progress.is_finished(self.config)
        progress.memory_gib = max(progress.memory_gib, *gather_objects(peak_gib(self.worker.device)))
        self.checkpoints.save(self.step, progress, self.identity, best=better)
        scalars = {f"validation_metrics/{name}": number for name, number in validation.metrics.items()}
        scalars |= {f"validation_metrics/intent_accuracy/{name}": number for name, number in validation.intents.items()}
        scalars |= {f"intent_attention/{name}": number for name, number in validation.attention.items()}
        self.monitor.scalars(progress.step, scalars)
        self.monitor.flush(now=True)
        self.worker.report({"model": self.run.name, "epoch": progress.epoch, **validation.metrics})

    def _tell_epoch(self, first_step: int, trained: float, validated: float) -> None:
        """One line for a person: what the epoch that has just ended came to. This process began it at `first_step`."""
        if not self.worker.first:
            return
        progress, (epoch, value) = self.progress, self.progress.validation_curve[-1]
        last_step, loss = progress.train_curve[-1] if progress.train_curve else (0, 0.0)
        facts = [f"loss {loss:.3f}"] if last_step > first_step else []
        facts.append(f"{self.config.metric} {value:.4f}{' (the best so far)' if progress.best_epoch == epoch else ''}")
        facts.append(f"step {progress.step:,}, {self.epoch_tokens / max(trained, 1e-9):,.0f} tokens/s")
        facts.append(f"{trained:.1f} s and {validated:.1f} s to validate and save")
        self.worker.say(f"{self.run.name} epoch {epoch}/{self.config.epochs}: {', '.join(facts)}")
