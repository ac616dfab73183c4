"""Models without a network, whose scores are counted from the training data when they are evaluated."""

from trainer.models.registry import declare

declare(popularity="evaluation.baselines.popularity", markov="evaluation.baselines.markov")
