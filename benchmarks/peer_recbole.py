"""Drives RecBole's SASRec for `benchmarks.peers`, which starts it in the peers' environment.

RecBole makes a sample of its own from each target, with the `length` interactions before it: a target costs a whole
padded sequence. Its trainer runs an epoch as it is; only the stream of its batches is watched.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender import SASRec

from benchmarks.peer_turns import Turns


class Watched:
    """The loader, telling `turns` of each step once the trainer asks for the batch after it."""

    def __init__(self, loader: Any, turns: Turns) -> None:
        self.loader, self.turns, self.shuffle = loader, turns, False

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for number, interaction in enumerate(self.loader):
            yield interaction
            self.turns.step(len(interaction), number + 1 == len(self.loader))


@torch.no_grad()
def validation_losses(
    model: Any, dataset: Any, histories: dict[int, list[int]], truth: dict[int, int]
) -> dict[str, float]:
    """-log softmax over the whole catalogue of each user's held-out item."""
    model.eval()
    known = {int(token): number for token, number in dataset.field2token_id["item_id"].items() if token != "[PAD]"}
    users = [user for user, item in truth.items() if item in known and user in histories]
    length, losses = model.max_seq_length, {}
    for begin in range(0, len(users), 256):
        part = users[begin : begin + 256]
        item_BL = torch.zeros(len(part), length, dtype=torch.int64)
        counts = []
        for row, user in enumerate(part):
            history = [known[item] for item in histories[user]][-length:]
            item_BL[row, : len(history)] = torch.tensor(history)
            counts.append(len(history))
        asked = {model.ITEM_SEQ: item_BL, model.ITEM_SEQ_LEN: torch.tensor(counts)}
        scores_BV = model.full_sort_predict(asked)
        scores_BV[:, 0] = -torch.inf
        target_B = torch.tensor([known[truth[user]] for user in part])
        loss_B = torch.nn.functional.cross_entropy(scores_BV, target_B, reduction="none")
        losses.update({str(user): loss for user, loss in zip(part, loss_B.tolist(), strict=True)})
    return losses


def make_dataset(config: Any) -> Any:
    """The log with all its samples, none held out: the validation targets are not in it."""
    dataset = SequentialDataset(config)
    dataset._change_feat_format()
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    for name in ("threads", "dimension", "layers", "heads", "length", "expansion", "batch", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("dropout", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()
    turns = Turns()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    train = pd.read_csv(f"{options.data}/train.csv")
    held_out = pd.read_csv(f"{options.data}/validation.csv")
    histories = train.groupby("user")["item"].apply(list).to_dict()
    truth = dict(zip(held_out["user"], held_out["item"], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        config = Config(model="SASRec", dataset="log", config_dict=settings(options, folder))
        columns = {"user": "user_id:token", "item": "item_id:token", "position": "timestamp:float"}
        path = Path(folder, "log", "log.inter")
        path.parent.mkdir()
        train.rename(columns=columns)[list(columns.values())].to_csv(path, sep="\t", index=False)
        dataset = make_dataset(config)
    loader = TrainDataLoader(config, dataset, None, shuffle=True)
    model = SASRec(config, dataset)
    turns.ready(steps=len(loader), items=dataset.item_num - 1)
    run(model, config, loader, turns, lambda: validation_losses(model, dataset, histories, truth), options.epochs)


def run(model: Any, config: Any, loader: Any, turns: Turns, validate: Any, epochs: int) -> None:
    from recbole.trainer.trainer import Trainer

    trainer = Trainer(config, model)
    for epoch in range(epochs):
        trainer._train_epoch(Watched(loader, turns), epoch)
        turns.epoch(validate())


def settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    return {
        "data_path": folder,
        "checkpoint_dir": folder,
        "use_gpu": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": options.length,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "n_layers": options.layers,
        "n_heads": options.heads,
        "hidden_size": options.dimension,
        "inner_size": options.expansion * options.dimension,
        "hidden_dropout_prob": options.dropout,
        "attn_dropout_prob": options.dropout,
        "train_batch_size": options.batch,
        "learning_rate": options.learning_rate,
        "show_progress": False,
        "state": "WARNING",
    }


if __name__ == "__main__":
    main()
