"""SI: penalises changes of weights by their path-integral share of past loss reduction.

Zenke et al. 2017 (arXiv 1703.04200). The path integral w = -sum g dw (eq. 3) takes the gradient of
the task's loss alone and the step that the optimiser made; at the end of a task
Omega += relu(w) / (Delta^2 + xi) (eq. 5, which has no relu), and the penalty is
strength * sum Omega (w - w*)^2 (eq. 4), w* the weights after the latest task.

Pre-training is not protected, so the first task is unconstrained: its path integral would have to
be measured while the base is trained. Under Adam a step does not follow the gradient, and the
integral is no longer the reduction of the loss; AdamW stays, as for all strategies.
"""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


class SiSettings(Frozen):
    """Strength and damping of the penalty."""

    strength: float = Field(10.0, ge=0, description="c of the penalty c sum Omega (w - w*)^2.")
    damping: float = Field(
        1e-3, gt=0, description="xi, squared weight: bounds Omega of weights that hardly changed."
    )


@strategies.register("si")
class Si(Strategy):
    """Memory holds `path.<name>` (nats), `anchor.<name>`, `importance.<name>` (nats / weight^2)."""

    Settings = SiSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        """Three copies of the trained weights, and two more during a step."""
        return 5 * 4 * trainee.num_trainable

    def start_task(self, trainee: Trainee) -> None:
        if self.memory:
            return
        for name, parameter in trainee.parameters.items():
            self.memory[f"path.{name}"] = torch.zeros_like(parameter).detach()
            self.memory[f"anchor.{name}"] = parameter.detach().clone()
            self.memory[f"importance.{name}"] = torch.zeros_like(parameter).detach()

    def penalty(self, trainee: Trainee) -> Tensor | None:
        # the path integral needs the weights before the step and the gradient of the task's loss:
        # `.grad` holds it here, and no longer after this penalty's own backward pass
        parameters = trainee.parameters
        self.before = {
            name: (p.detach().clone(), p.grad.clone())
            for name, p in parameters.items()
            if p.grad is not None
        }
        if self.settings.strength == 0:
            return None
        terms = [
            (self.memory[f"importance.{name}"] * (p - self.memory[f"anchor.{name}"]).square()).sum()
            for name, p in parameters.items()
        ]
        return self.settings.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        for name, (before, gradient) in self.before.items():
            step = trainee.parameters[name] - before
            self.memory[f"path.{name}"].addcmul_(gradient, step, value=-1)
        self.before = {}

    @torch.no_grad()
    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        for name, parameter in trainee.parameters.items():
            path, anchor = self.memory[f"path.{name}"], self.memory[f"anchor.{name}"]
            damped = (parameter - anchor).square() + self.settings.damping
            self.memory[f"importance.{name}"] += path.relu() / damped
            path.zero_()
            anchor.copy_(parameter)
