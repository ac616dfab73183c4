"""What a checkpoint holds of a step: the model, the optimizers' state, and which values of a feature have which row.

model/<parameter>               weights, tables as their shards
fused/<table>/<state>           the fused optimizer's state of a table, sharded as the table is
dense/<parameter>/<state>       AdamW's
zch/<table>/...                 the mapping of a table of few rows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from embeddings.table_config import table_of
from trainer.pieces import Part, StoredPieces
from trainer.step import Step


class State:
    """The tensors of `step` as they are in memory: reading them gives its weights, writing into them changes those."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.model = step.parallel.state_dict()
        self.fused: dict[str, dict[str, Tensor | ShardedTensor]] = step.parallel.fused_optimizer.state_dict()["state"]
        self.dense: dict[str, dict[str, Tensor]] = {}
        for name, parameter in step.dense.items():
            state = step.optimizer.state[parameter]
            self.dense[name] = {
                "step": state.get("step", torch.zeros((), device=parameter.device)),
                "exp_avg": state.get("exp_avg", torch.zeros_like(parameter)),
                "exp_avg_sq": state.get("exp_avg_sq", torch.zeros_like(parameter)),
            }

    def parts(self, replicated: bool, touched: Mapping[str, Tensor] | None = None) -> Iterator[Part]:
        """This worker's shards, and, where `replicated` are asked for, what is the same on all workers.

        `touched`: by table those of its rows that are asked for; a table of which half are is given whole.
        """
        for name, table, tensor in self._tensors():
            if isinstance(tensor, ShardedTensor):
                shape, only = tuple(tensor.metadata().size), (touched or {}).get(table or "")
                for shard in tensor.local_shards():
                    whole = Part(name, shape, tuple(shard.metadata.shard_offsets), shard.tensor.detach())
                    few = None if only is None else replace(whole, only=only)
                    yield whole if few is None or 2 * few.nbytes > whole.nbytes else few
            elif replicated:
                yield Part(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor.detach())

    def collisions(self) -> Iterator[Part]:
        """The mappings, which are the same on all workers."""
        for name, tensor in self.step.recommender.tables.collisions.state().items():
            yield Part(f"zch/{name}", tuple(tensor.shape), (0,) * tensor.dim(), tensor)

    def _tensors(self) -> Iterator[tuple[str, str | None, Tensor | ShardedTensor]]:
        """Name, the table whose rows it is of, and the tensor."""
        yield from ((f"model/{name}", table_of(name), tensor) for name, tensor in self.model.items())
        for kind, states in (("fused", self.fused), ("dense", self.dense)):
            for name, state in states.items():
                yield from ((f"{kind}/{name}/{key}", table_of(name), tensor) for key, tensor in state.items())

    def read(self, stored: StoredPieces) -> None:
        """Put what is `stored` into the step. Nothing is exchanged with other workers."""
        mappings = {name: stored.whole(name) for name in stored.names("zch/")}
        for table in self.step.recommender.tables.collisions.modules:
            if f"zch/{table}/progress" not in mappings:
                raise stored.misfit(f"it has no mapping of {table}, which tables.zch names")
        wholes = [Part(name, tuple(t.shape), (0,) * t.dim(), t) for name, t in mappings.items()]
        stored.read([*self.parts(replicated=True), *wholes])
        self.mappings = {name.removeprefix("zch/"): tensor for name, tensor in mappings.items()}

    def hand_over(self) -> None:
        """Give the step what `read` has brought: caches and copies of its own follow."""
        step = self.step
        step.parallel.load_state_dict(self.model)
        step.recommender.tables.collisions.load(self.mappings)
        for name, values in self.dense.items():
            step.optimizer.state[step.dense[name]].update(values)
