"""Shared by masks: the learning rate's factor, random masks, and the count that `acft` trains."""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.strategies.acft import Acft, AcftSettings


class MaskSettings(Frozen):
    """Learning rate of the trained parameters."""

    rate: float = Field(1.0, gt=0, description="Factor on the learning rate of trained parameters.")


def trained_by_acft(model: Transformer) -> dict[str, int]:
    """Names of the parameters that `acft` trains by default, with the number of entries of each.

    Raises ValueError where the network has no selected flow.
    """
    names = Acft(AcftSettings()).trainable(model).lr_scales
    return {name: model.get_parameter(name).numel() for name in names}


def random_lines(
    matrices: dict[str, Tensor], axis: int, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Masks that are True at `count` entries in all: random rows (axis 0) or columns (axis 1).

    Lines are whole, and all lines of all matrices are equally likely. As matrices differ in width,
    the last line drawn is cut where the count is reached.
    """
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in matrices.items()}
    lines = [(name, i) for name, p in matrices.items() for i in range(p.shape[axis])]
    for pick in torch.randperm(len(lines), generator=generator).tolist():
        name, i = lines[pick]
        line = masks[name].select(axis, i)
        line[:count] = True
        count -= min(count, len(line))
    return masks


def random_entries(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """[numel], True at `count` random places."""
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[torch.randperm(numel, generator=generator)[:count]] = True
    return mask
