"""Small models of every kind, with the options that change what they compute, for tests that all have to pass."""

from __future__ import annotations

from typing import get_args

from trainer.models.bert4rec import BERT4RecConfig
from trainer.models.deep import DeepConfig
from trainer.models.gru import GRUConfig
from trainer.models.hstu import HSTUConfig
from trainer.models.intentrec import IntentRecConfig
from trainer.models.lstm import LSTMConfig
from trainer.models.registry import Knowledge, NeuralConfig
from trainer.models.sasrec import SASRecConfig
from trainer.models.transact import TransActConfig
from trainer.models.transformer import TransformerModelConfig

KINDS: dict[str, NeuralConfig] = {
    "intentrec": IntentRecConfig(heads=2, dropout=0.0, window="8h"),
    "deep": DeepConfig(heads=2, dropout=0.0, window="8h"),
    "sasrec": SASRecConfig(heads=2, dropout=0.0),
    "transformer": TransformerModelConfig(heads=2, dropout=0.0, gated=True),
    "transformer of items": TransformerModelConfig(heads=2, dropout=0.0, features=False, intents=["action", "genres"]),
    "two encoders": IntentRecConfig(heads=2, dropout=0.0, window=None, intents=["action"]),
    "bert4rec": BERT4RecConfig(heads=2, dropout=0.0),
    "bert4rec of everything": BERT4RecConfig(
        heads=2, dropout=0.0, features=True, times=True, intents=None, hidden_share=0.5, knows=["attributes", "intents"]
    ),
    "transact": TransActConfig(heads=2, dropout=0.0, mask=None, newest=3),
    "hstu": HSTUConfig(heads=2, dropout=0.0, temperature=0.2),
    "hstu without times": HSTUConfig(heads=2, dropout=0.0, features=False, times=False, intents=[]),
    "gru": GRUConfig(dropout=0.0, layers=2, hidden=12),
    "lstm": LSTMConfig(dropout=0.0, features=False, times=False),
}


def knowing_all(model: NeuralConfig) -> NeuralConfig:
    """The model with every part of the scores that it can have."""
    lacking = ["intents"] * (not model.has_heads) + ["history"] * (model.kind == "bert4rec")
    return model.model_copy(update={"knows": [part for part in get_args(Knowledge) if part not in lacking]})
