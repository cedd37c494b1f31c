"""A strategy in one file: pulls every weight towards its value at the start of the task.

`dsa-sandbox finetune --include examples/anchor.py --strategy anchor --set anchor.strength=0.1`
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


class AnchorSettings(Frozen):
    """Strength of the pull."""

    strength: float = Field(0.1, ge=0, description="Factor of the sum of squared distances.")


@strategies.register("anchor")
class Anchor(Strategy):
    """L2 pull to the weights at the start of each task: what EWC is where the Fisher is 1."""

    Settings = AnchorSettings

    def start_task(self, trainee: Trainee) -> None:
        self.memory = trainee.copies()  # `memory` is saved in every checkpoint

    def penalty(self, trainee: Trainee) -> Tensor:
        distances = [
            (weights - self.memory[name]).square().sum()
            for name, weights in trainee.parameters.items()
        ]
        return self.settings.strength * torch.stack(distances).sum()
