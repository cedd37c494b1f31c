"""Trains everything that ACFT freezes, except the indexer.

`matched` draws entries from all of it, of each tensor its share, as many as acft moves.
"""

from itertools import accumulate
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.masks import MaskSettings, moved_by_acft, random_entries


class ComplementSettings(MaskSettings):
    """Learning rate, and the number of trained entries."""

    count: Literal["whole", "matched"] = Field(
        "whole", description="Train the whole complement, or as many of its entries as acft trains."
    )


@strategies.register("complement")
class Complement(Strategy):
    """Trains all parameters but those of `acft` and the indexer."""

    Settings = ComplementSettings
    role = "mask"

    def moves(self, model: Transformer) -> dict[str, float]:
        names = self.names(model) if self.settings.count == "whole" else self.entries(model)
        return dict.fromkeys(names, self.settings.rate)

    def names(self, model: Transformer) -> list[str]:
        """All of it."""
        others = moved_by_acft(model)
        names = (name for name, _ in model.named_parameters() if name not in others)
        return [name for name in names if group_of(name) != "indexer"]

    def entries(self, model: Transformer) -> dict[str, Tensor]:
        if self.settings.count == "whole":
            return {}
        tensors = {name: model.get_parameter(name) for name in self.names(model)}
        sizes = [tensor.numel() for tensor in tensors.values()]
        count, generator = sum(moved_by_acft(model).values()), torch.Generator().manual_seed(0)
        ends = [round(count * end / sum(sizes)) for end in accumulate(sizes)]
        found = {}
        for (name, tensor), begin, end in zip(tensors.items(), [0, *ends], ends):
            moves = random_entries(tensor.numel(), end - begin, generator)
            found[name] = moves.view(tensor.shape).to(tensor.device)
        return {name: moves for name, moves in found.items() if moves.any()}
