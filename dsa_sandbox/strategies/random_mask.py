"""Trains random rows and columns of the attention matrices, as many entries as ACFT.

Rows of the query, key and value matrices, columns of the output matrices. In each layer, each of
these four kinds gets as many entries as in `acft`, drawn from all matrices of the kind: in `dense`
from both head groups; in `dsa` from both flows, where `k_rope`, `k_up` and the latent's `down`
(which serves keys and values) count as keys and `v_up` as values; in `dsa-v32` from both streams,
where the query latent counts as a query and the key-value latent as a key. The gate of pooled
windows and all norms stay frozen.
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy, Trainable
from dsa_sandbox.strategies.masks import MaskSettings, random_lines, trained_by_acft

KINDS = {
    "q": ("q",),
    "k": ("k", "k_rope", "k_up", "down", "kv"),
    "v": ("v", "v_up"),
    "o": ("o",),
}
KIND_OF = {matrix: kind for kind, matrices in KINDS.items() for matrix in matrices}


class RandomMaskSettings(MaskSettings):
    """Learning rate, and seed of the mask."""

    draw: int = Field(0, ge=0, description="Seed of the mask: 0, 1, 2 give three different masks.")


@strategies.register("random-mask")
class RandomMask(Strategy):
    """Trains as many random entries of q, k, v and o, each, as `acft`, in whole lines."""

    Settings = RandomMaskSettings
    role = "mask"

    def trainable(self, model: Transformer) -> Trainable:
        counts = trained_by_acft(model)
        pools: dict[tuple[str, str], dict[str, Tensor]] = {}  # by layer and kind
        for name, parameter in model.named_parameters():
            layer, _, matrix = name.partition(".attention.")
            kind = KIND_OF.get(matrix.split(".")[-2]) if matrix else None
            if kind and group_of(name) != "indexer":
                pools.setdefault((layer, kind), {})[name] = parameter
            elif name in counts:
                raise ValueError(f"random-mask: acft trains {name}, which is no q, k, v or o")
        generator = torch.Generator().manual_seed(self.settings.draw)
        masks: dict[str, Tensor] = {}
        for (_, kind), matrices in pools.items():
            count = sum(counts.get(name, 0) for name in matrices)
            axis = 1 if kind == "o" else 0
            masks |= random_lines(matrices, axis, count, generator)
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        return Trainable(dict.fromkeys(masks, self.settings.rate), masks)
