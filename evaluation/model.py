"""A model of a run, as its config has it, and as its training left it."""

from __future__ import annotations

from dataclasses import dataclass

from embeddings.workers import Worker
from evaluation.ranking import NeuralScorer
from ingest.data.manifest import Manifest
from ingest.errors import DamagedCheckpointError, InputError
from trainer.candidates import Known
from trainer.checkpoint import Checkpoints
from trainer.models.registry import ModelConfig, NeuralConfig
from trainer.progress import Progress
from trainer.step import Step
from trainer.train_config import TrainConfig


@dataclass(frozen=True)
class Model:
    name: str
    config: ModelConfig
    train: TrainConfig
    """The run's `train` section with the model's own keys laid over it."""
    checkpoints: str
    """Folder of its checkpoints, where it is trained."""

    def restored(self, manifest: Manifest, worker: Worker, known: Known) -> tuple[NeuralScorer, Progress]:
        """The weights of its best checkpoint, and where its training ended; every worker calls it."""
        assert isinstance(self.config, NeuralConfig)
        checkpoints = Checkpoints(self.checkpoints, self.train, worker)
        best = checkpoints.require_best(self.name)
        step = Step(self.config, self.train, manifest, worker, known=known)
        try:
            checkpoints.load(step, best)
        except DamagedCheckpointError as error:
            raise InputError(
                f"the best checkpoint of model {self.name} is damaged: {error}; take another name for the run, or "
                f"remove {self.checkpoints}, and train it anew"
            ) from None
        return NeuralScorer(step), checkpoints.progress(checkpoints.latest() or best)
