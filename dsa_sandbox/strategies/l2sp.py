"""L2-SP: penalises the squared distance of all weights from the base's weights.

Li et al. 2018 (arXiv 1802.01483, section 3), without their term for new layers: there are none. It
is EWC with a Fisher of 1: what `ewc` gains over it is what the Fisher knows.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


class L2spSettings(Frozen):
    """Strength and anchor of the penalty."""

    strength: float = Field(0.01, ge=0, description="lambda of lambda/2 sum (w - w*)^2.")
    anchor: Literal["base", "latest"] = Field(
        "base", description="w*: the weights of the base, or those at the start of the task."
    )


@strategies.register("l2sp")
class L2sp(Strategy):
    """Memory holds `anchor.<name>`; with anchor=base pre-training is what is protected."""

    Settings = L2spSettings

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        return 4 * sum(p.numel() for p in self.moved(model).values())

    def start_task(self, model: Transformer) -> None:
        if self.memory and self.settings.anchor == "base":
            return
        self.memory = {f"anchor.{n}": p.detach().clone() for n, p in self.moved(model).items()}

    def penalty(self, model: Transformer) -> Tensor | None:
        if self.settings.strength == 0:
            return None
        distances = [
            (parameter - self.memory[f"anchor.{name}"]).square().sum()
            for name, parameter in self.moved(model).items()
        ]
        return 0.5 * self.settings.strength * torch.stack(distances).sum()
