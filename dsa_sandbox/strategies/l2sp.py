"""L2-SP: penalises the squared distance of all weights from the base's weights.

Li et al. 2018 (arXiv 1802.01483, section 3), without their term for new layers: there are none.
It equals EWC with a Fisher of 1; what `ewc` gains over it is due to the Fisher.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


class L2spSettings(Frozen):
    """Strength and anchor of the penalty."""

    strength: float = Field(0.01, ge=0, description="lambda of lambda/2 sum (w - w*)^2.")
    anchor: Literal["base", "latest"] = Field(
        "base", description="w*: the weights of the base, or those at the start of the task."
    )


@strategies.register("l2sp")
class L2sp(Strategy):
    """Memory holds `anchor.<name>`; anchor=base protects pre-training."""

    Settings = L2spSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return 4 * trainee.num_trainable

    def start_task(self, trainee: Trainee) -> None:
        if self.memory and self.settings.anchor == "base":
            return
        self.memory = trainee.copies("anchor.")

    def penalty(self, trainee: Trainee) -> Tensor | None:
        if self.settings.strength == 0:
            return None
        distances = [
            (parameter - self.memory[f"anchor.{name}"]).square().sum()
            for name, parameter in trainee.parameters.items()
        ]
        return 0.5 * self.settings.strength * torch.stack(distances).sum()
