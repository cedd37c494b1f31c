"""EWC: penalises changes of weights by their Fisher information on earlier data.

Kirkpatrick et al. 2017 (arXiv 1612.00796, eq. 3), online with one anchor at the latest optimum and
a summed precision (Huszar, arXiv 1712.03847). Pre-training is protected by a Fisher of its own, F0,
before the first task. Each data set's F is the mean over its sequences of their means per token, so
that short and long sequences weigh alike, and a task counts as much as all of pre-training; a
posterior would count tokens.
"""

from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies import biased_fisher
from dsa_sandbox.strategies.base import Strategy, Trainee


class EwcSettings(Frozen):
    """Strength of the penalty, and the estimate of the Fisher."""

    strength: float = Field(
        0.03, ge=0, description="lambda of lambda/2 sum F (w - w*)^2, F scaled to mean(F0) = 1."
    )
    passes: int = Field(2000, ge=1, description="Pre-training sequences for F0, one pass each.")
    fisher: Literal["sampled", "empirical", "batched"] = Field(
        "sampled", description="Fisher with labels sampled from the model, or two biased estimates."
    )
    task_passes: int = Field(64, ge=1, description="Backward passes for the Fisher of a task.")


def sampled_fisher(
    model: Transformer, batches: Iterable[Batch], names: list[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """Diagonal of the true Fisher per token, of the named parameters: the mean over batches.

    Labels are drawn from the model, so scores of different tokens are uncorrelated and the square
    of the gradient of the mean loss over n tokens, times n, is unbiased at any batch size
    (Kunstner et al. 2019, arXiv 1905.12558; the estimator of Sophia, arXiv 2305.14342, sec. 2.3).
    """
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    squares = [torch.zeros_like(p) for p in chosen]
    count = 0
    for batch in batches:
        logits_BTV = model(batch.tokens_BT)
        logits_MV = logits_BTV[batch.targets_BT != IGNORED].float()
        with torch.no_grad():
            noise_MV = torch.rand(logits_MV.shape, generator=generator).to(logits_MV)
            gumbel_MV = -torch.log(-torch.log(noise_MV.clamp(1e-20, 1 - 1e-7)))
            labels_M = (logits_MV + gumbel_MV).argmax(-1)
        gradients = torch.autograd.grad(F.cross_entropy(logits_MV, labels_M), chosen)
        for square, gradient in zip(squares, gradients):
            square.addcmul_(gradient, gradient, value=len(labels_M))
        count += 1
    return {name: square / max(1, count) for name, square in zip(names, squares)}


@strategies.register("ewc")
class Ewc(Strategy):
    """Online EWC: memory holds `fisher.<name>`, `anchor.<name>`, and the scale 1 / mean(F0)."""

    Settings = EwcSettings

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return 8 * trainee.num_trainable

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        self.remember(trainee, islice(pretraining, self.settings.passes), seed)
        fisher = [v for k, v in self.memory.items() if k.startswith("fisher.")]
        mean = sum(f.sum() for f in fisher) / sum(f.numel() for f in fisher)
        self.memory["scale"] = 1 / torch.as_tensor(mean)

    def cache_key(self) -> dict[str, Any]:
        return {"strategy": "ewc", **self.settings.model_dump(include={"passes", "fisher"})}

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        self.remember(trainee, islice(cycle(batches), self.settings.task_passes), seed)

    def remember(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        """F = F + F_new, anchor = now."""
        parameters = trainee.parameters
        generator = torch.Generator().manual_seed(seed)
        estimate = biased_fisher.ESTIMATORS.get(self.settings.fisher, sampled_fisher)
        for name, fisher in estimate(trainee.model, batches, list(parameters), generator).items():
            key = f"fisher.{name}"
            self.memory[key] = fisher + self.memory.get(key, 0.0)
            self.memory[f"anchor.{name}"] = parameters[name].detach().clone()

    def penalty(self, trainee: Trainee) -> Tensor | None:
        if self.settings.strength == 0:
            return None
        total = torch.zeros((), device=self.memory["scale"].device)
        for name, parameter in trainee.parameters.items():
            distance = parameter - self.memory[f"anchor.{name}"]
            total = total + (self.memory[f"fisher.{name}"] * distance.square()).sum()
        return 0.5 * self.settings.strength * self.memory["scale"] * total
