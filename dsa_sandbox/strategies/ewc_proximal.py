"""EWC as a proximal step: pulls weights to the anchor after each optimiser step.

    w = (w + a F w*) / (1 + a F),  a = rate * strength * scale

with the learning rate of that weight. It minimises, exactly,

    strength/2 scale F (w - w*)^2 + (w - w_step)^2 / (2 rate)

(Parikh & Boyd 2014, Proximal Algorithms, section 6.1.1): stable at any strength, and not rescaled
by Adam.
"""

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Trainee
from dsa_sandbox.strategies.ewc import Ewc, EwcSettings


class EwcProximalSettings(EwcSettings):
    """Settings of `ewc`; the strength has another scale, as Adam does not rescale the pull."""

    strength: float = Field(
        30.0, ge=0, description="lambda of lambda/2 sum F (w - w*)^2, F scaled to mean(F0) = 1."
    )


@strategies.register("ewc-proximal")
class EwcProximal(Ewc):
    """The memory of `ewc`; no penalty in the loss."""

    Settings = EwcProximalSettings
    corrects_weights = True

    def penalty(self, trainee: Trainee) -> Tensor | None:
        return None

    @torch.no_grad()
    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        most = torch.finfo(self.memory["scale"].dtype).max  # infinity times 0 is not 0
        for name, parameter in trainee.parameters.items():
            own = learning_rate * trainee.lr_scales[name]
            pull = (own * self.settings.strength * self.memory["scale"]).clamp(max=most)
            weight = pull * self.memory[f"fisher.{name}"]
            share = 1 / (1 + 1 / weight)  # of the way to the anchor; 0 where the Fisher is 0
            parameter.add_(share * (self.memory[f"anchor.{name}"] - parameter))
