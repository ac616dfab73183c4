"""Drives RecTools' SASRec for `benchmarks.peers`, which starts it in the peers' environment.

RecTools cuts each history to its last `length` + 1 interactions and draws `negatives` of its own for every place of its
padded batch, padding included.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.peer_turns import Turns


class InTurns(Callback):
    """Counts the targets of each step, and validates at the end of each epoch."""

    def __init__(self, turns: Turns, model: list[Any], histories: dict[int, list[int]], truth: dict[int, int]) -> None:
        self.turns, self.model, self.histories, self.truth = turns, model, histories, truth

    def __deepcopy__(self, memo: dict[int, Any]) -> InTurns:
        return self

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.turns.ready(steps=trainer.num_training_batches, items=module.torch_model.item_model.n_items - 1)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        self.turns.step(int((batch["y"] != 0).sum()), number + 1 == trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        module.eval()
        losses = validation_losses(module, self.model[0].data_preparator, self.histories, self.truth)
        module.train()
        self.turns.epoch(losses)


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
    for name in ("data", "loss"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("threads", "dimension", "layers", "heads", "length", "negatives", "batch", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("dropout", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()
    turns = Turns()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train = pd.read_csv(f"{options.data}/train.csv")
    held_out = pd.read_csv(f"{options.data}/validation.csv")
    histories = train.groupby("user")["item"].apply(list).to_dict()
    interactions = pd.DataFrame(
        {
            Columns.User: train["user"],
            Columns.Item: train["item"],
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(train["position"], unit="s"),
        }
    )
    models: list[Any] = []
    callback = InTurns(turns, models, histories, dict(zip(held_out["user"], held_out["item"], strict=True)))

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=options.epochs,
            min_epochs=options.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
        )

    models.append(
        SASRecModel(
            n_factors=options.dimension,
            n_blocks=options.layers,
            n_heads=options.heads,
            dropout_rate=options.dropout,
            session_max_len=options.length,
            loss=options.loss,
            n_negatives=options.negatives,
            lr=options.learning_rate,
            batch_size=options.batch,
            get_trainer_func=trainer,
        )
    )
    models[0].fit(Dataset.construct(interactions))


if __name__ == "__main__":
    main()
