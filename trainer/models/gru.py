"""GRU4Rec (Hidasi et al., arXiv 1511.06939 and 1706.03847): gated recurrent units over a user's items.

With the loss that the config names (sampled or full softmax, as in "GRU4Rec with full softmax", arXiv 2309.07602) in
place of BPR-max; over users' whole sequences in place of sessions side by side in mini-batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer.models.base import RecurrentConfig
from trainer.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from ingest.data.manifest import Manifest


@register
class GRUConfig(RecurrentConfig):
    kind: Literal["gru"] = "gru"

    def network(self, manifest: Manifest, dimension: int, max_length: int) -> nn.Module:
        from torch import nn

        from trainer.recurrent import RecurrentNetwork

        return RecurrentNetwork(nn.GRU, self, manifest, dimension)
