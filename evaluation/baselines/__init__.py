"""Models without a network, whose scores are counted from the training data when they are evaluated."""

from trainer.models.registry import MODELS

MODELS.built_in |= {"popularity": "evaluation.baselines.popularity", "markov": "evaluation.baselines.markov"}
