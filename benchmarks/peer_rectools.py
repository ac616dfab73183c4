"""Drives RecTools' SASRec for `benchmarks.peers`, in the peers' environment: nothing of the project is imported here.

On stdin comes a line of JSON for each turn: {"steps": n}, or {"steps": null} for what is left of the epoch. On stdout
goes one for the start and for each turn. The clock runs from the line's arrival to the end of the turn's last step:
reading, collating, forward, backward and optimizer; the first `warm-up` steps count for nothing.

RecTools cuts each history to its last `length` + 1 interactions and draws `negatives` of its own for every place of its
padded batch, padding included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class InTurns(Callback):
    """Trains when told so, counts the targets of each step, and validates at the end of each epoch."""

    def __init__(self, warm_up: int, histories: dict[int, list[int]], truth: dict[int, int]) -> None:
        self.warm_up, self.histories, self.truth = warm_up, histories, truth
        self.model: Any = None
        self.steps = 0
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else is printed goes to stderr

    def __deepcopy__(self, memo: dict[int, Any]) -> InTurns:
        return self

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._answer({"steps": trainer.num_training_batches})

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        self.steps += 1
        self.targets += int((batch["y"] != 0).sum())
        if self.steps <= self.warm_up:
            self.targets, self.began = 0, time.perf_counter()
        self.left = None if self.left is None else self.left - 1
        self.seconds = time.perf_counter() - self.began
        if self.left == 0 and number + 1 < trainer.num_training_batches:
            self._answer({"seconds": self.seconds, "targets": self.targets})

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        module.eval()
        losses = validation_losses(module, self.model.data_preparator, self.histories, self.truth)
        module.train()
        self._answer({"seconds": self.seconds, "targets": self.targets, "losses": losses})

    def _answer(self, content: dict[str, Any]) -> None:
        """Say it, and wait for the next turn."""
        print(json.dumps(content), file=self.out, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left = json.loads(line)["steps"]
        self.targets, self.seconds, self.began = 0, 0.0, time.perf_counter()


@torch.no_grad()
def validation_losses(
    module: Any, preparator: Any, histories: dict[int, list[int]], truth: dict[int, int]
) -> dict[str, float]:
    """-log softmax over the whole catalogue of each user's held-out item."""
    known = {item: number for number, item in enumerate(preparator.item_id_map.external_ids)}
    users = [user for user, item in truth.items() if item in known and user in histories]
    item_VD, length = module.torch_model.item_model.get_all_embeddings(), preparator.session_max_len
    losses = {}
    for begin in range(0, len(users), 256):
        part = users[begin : begin + 256]
        x_BL = torch.zeros(len(part), length, dtype=torch.int64)
        for row, user in enumerate(part):
            history = [known[item] for item in histories[user] if item in known][-length:]
            x_BL[row, length - len(history) :] = torch.tensor(history)
        last_BD = module.torch_model.encode_sessions({"x": x_BL}, item_VD)[:, -1]
        scores_BV = module.torch_model.similarity_module(last_BD[:, None], item_VD)[:, 0]
        scores_BV[:, 0] = -torch.inf
        target_B = torch.tensor([known[truth[user]] for user in part])
        loss_B = torch.nn.functional.cross_entropy(scores_BV, target_B, reduction="none")
        losses.update({str(user): loss for user, loss in zip(part, loss_B.tolist(), strict=True)})
    return losses


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    for name in ("threads", "epochs", "dimension", "length", "negatives", "warm-up"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train, held_out = (pd.read_csv(f"{options.data}/{name}.csv") for name in ("train", "validation"))
    histories = train.groupby("user")["item"].apply(list).to_dict()
    turns = InTurns(options.warm_up, histories, dict(zip(held_out["user"], held_out["item"], strict=True)))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    epochs = {"min_epochs": options.epochs, "max_epochs": options.epochs}
    turns.model = SASRecModel(
        n_factors=options.dimension,
        n_blocks=2,
        n_heads=2,
        dropout_rate=0.2,
        session_max_len=options.length,
        loss="sampled_softmax",
        n_negatives=options.negatives,
        lr=1e-3,
        batch_size=128,
        get_trainer_func=lambda: Trainer(accelerator="cpu", callbacks=[turns], **epochs, **quiet),
    )
    columns = {Columns.User: train["user"], Columns.Item: train["item"], Columns.Weight: 1}
    columns[Columns.Datetime] = pd.to_datetime(train["position"], unit="s")
    turns.model.fit(Dataset.construct(pd.DataFrame(columns)))


if __name__ == "__main__":
    main()
