"""Models without a network, whose scores are counted from the training data when they are evaluated."""

from trainer.models.registry import MODELS

MODELS.built_in |= {
    kind: f"evaluation.baselines.{kind}"
    for kind in ("popularity", "markov", "recent", "returns", "trending", "followed", "item_knn", "session_knn", "rule")
}
