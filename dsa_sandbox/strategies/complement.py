"""Trains everything that ACFT freezes, except the indexer.

With `count=matched`, as many random entries of it as ACFT trains, from each tensor in proportion
to its size.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Strategy, Trainable
from dsa_sandbox.strategies.masks import MaskSettings, random_entries, trained_by_acft


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

    def trainable(self, model: Transformer) -> Trainable:
        of_acft = trained_by_acft(model)
        complement = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name not in of_acft and group_of(name) != "indexer"
        }
        masks: dict[str, Tensor] = {}
        if self.settings.count == "matched":
            masks = matched_masks(complement, sum(of_acft.values()))
        return Trainable(dict.fromkeys(masks or complement, self.settings.rate), masks)


def matched_masks(tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks that are True at `count` random entries in all, in proportion to the tensors' sizes.

    Tensors without any are left out.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [tensor.numel() for tensor in tensors.values()]
    ends = [round(count * end / sum(sizes)) for end in accumulate(sizes)]  # rounding cannot add up
    masks = {}
    for (name, tensor), begin, end in zip(tensors.items(), [0, *ends], ends):
        mask = random_entries(tensor.numel(), end - begin, generator)
        if mask.any():
            masks[name] = mask.view(tensor.shape).to(tensor.device)
    return masks
