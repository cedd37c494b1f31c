"""A strategy of one's own in one file: pull every weight towards where the task began.

`dsa-sandbox finetune --include examples/anchor.py --strategy anchor --set anchor.strength=0.1`
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


class AnchorSettings(Frozen):
    """How hard it pulls."""

    strength: float = Field(0.1, ge=0, description="Factor of the sum of squared distances.")


@strategies.register("anchor")
class Anchor(Strategy):
    """L2 pull to the weights at the start of each task: what EWC is where the Fisher is 1."""

    Settings = AnchorSettings

    def start_task(self, model: Transformer) -> None:  # `memory` is what a checkpoint keeps
        self.memory = {name: p.detach().clone() for name, p in self.moved(model).items()}

    def penalty(self, model: Transformer) -> Tensor:
        distances = [
            (weights - self.memory[name]).square().sum()
            for name, weights in self.moved(model).items()
        ]
        return self.settings.strength * torch.stack(distances).sum()
