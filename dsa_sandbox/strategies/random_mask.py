"""Trains random rows and columns of the attention matrices, as many entries as ACFT.

Rows of the matrices that make queries, keys and values, columns of those that write the output. In
each layer, each kind has the count that it has in `acft`, drawn from all matrices of that kind:
`dense`, from both head groups; `dsa`, from both flows, where `k_rope`, `k_up` and the latent's
`down` (which serves keys and values) count as keys and `v_up` as values; `dsa-v32`, from both
streams, where the query latent is a query and the key-value latent a key. A pooled window's gate
and all norms stay.
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.masks import MaskSettings, moved_by_acft, random_lines

KINDS = {
    "q": ("q",),
    "k": ("k", "k_rope", "k_up", "down", "kv"),
    "v": ("v", "v_up"),
    "o": ("o",),
}
KIND_OF = {matrix: kind for kind, matrices in KINDS.items() for matrix in matrices}


class RandomMaskSettings(MaskSettings):
    """Learning rate, and seed of the mask."""

    rate: float = Field(2.0, gt=0, description="Factor on the learning rate of trained parameters.")
    draw: int = Field(0, ge=0, description="Seed of the mask: 0, 1, 2 give three different masks.")


@strategies.register("random-mask")
class RandomMask(Strategy):
    """Trains as many random entries of q, k, v and o, each, as `acft`, in whole lines."""

    Settings = RandomMaskSettings
    role = "mask"

    def moves(self, model: Transformer) -> dict[str, float]:
        return dict.fromkeys(self.entries(model), self.settings.rate)

    def entries(self, model: Transformer) -> dict[str, Tensor]:
        counts = moved_by_acft(model)
        alike: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, parameter in model.named_parameters():
            layer, _, matrix = name.partition(".attention.")
            kind = KIND_OF.get(matrix.split(".")[-2]) if matrix else None
            if kind and group_of(name) != "indexer":
                alike.setdefault((layer, kind), {})[name] = parameter
            elif name in counts:
                raise ValueError(f"random-mask: {name} moves in acft, but is no q, k, v or o")
        generator = torch.Generator().manual_seed(self.settings.draw)
        found: dict[str, Tensor] = {}
        for (_, kind), matrices in alike.items():
            count = sum(counts.get(name, 0) for name in matrices)
            found |= random_lines(matrices, int(kind == "o"), count, generator)
        return {name: moves for name, moves in found.items() if moves.any()}
