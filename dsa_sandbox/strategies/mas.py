"""MAS: penalises changes of weights by the sensitivity of the network's output to them.

Aljundi et al. 2018 (arXiv 1711.09601, section 4): the mean over sequences of |d ||f||^2 / dw|,
without labels; never the magnitude of a mean gradient, in which sequences cancel. In the paper f is
the network's output. Adding a constant to all logits changes no probability, so f is here the
logits minus their mean over the vocabulary, and ||f||^2 its mean over tokens.

M tokens with a target, T tokens, V vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Trainee
from dsa_sandbox.strategies.ewc import Ewc


class MasSettings(Frozen):
    """Strength of the penalty, and the estimate of the importance."""

    strength: float = Field(
        0.03,
        ge=0,
        description="lambda of lambda/2 sum Omega (w - w*)^2, Omega of pre-training scaled to "
        "mean 1.",
    )
    passes: int = Field(
        500, ge=1, description="Pre-training sequences for the importance, one backward pass each."
    )
    task_passes: int = Field(
        64, ge=1, description="Backward passes for the importance of each finished task."
    )


def output_importance(
    model: Transformer, batches: Iterable[Batch], names: list[str]
) -> dict[str, Tensor]:
    """Mean over sequences of the magnitude of the gradient of ||f||^2, of the named parameters."""
    chosen = [model.get_parameter(name) for name in names]
    sums = [torch.zeros_like(p).detach() for p in chosen]
    count = 0
    for batch in batches:
        for tokens_T, targets_T in zip(*batch):
            logits_MV = model(tokens_T.unsqueeze(0))[0, targets_T != IGNORED].float()
            centred_MV = logits_MV - logits_MV.mean(-1, keepdim=True)
            norm = centred_MV.square().sum(-1).mean()
            for total, gradient in zip(sums, torch.autograd.grad(norm, chosen)):
                total += gradient.abs()
            count += 1
    return {name: total / max(1, count) for name, total in zip(names, sums)}


@strategies.register("mas")
class Mas(Ewc):
    """The penalty of `ewc` with Omega in place of the Fisher; memory names it `fisher.<name>`."""

    Settings = MasSettings  # type: ignore[assignment]

    def cache_key(self) -> dict[str, Any]:
        return {"strategy": "mas", "passes": self.settings.passes}

    def remember(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        """Omega = Omega + Omega_new, anchor = current weights; needs no random draws."""
        parameters = trainee.parameters
        for name, importance in output_importance(trainee.model, batches, list(parameters)).items():
            key = f"fisher.{name}"
            self.memory[key] = importance + self.memory.get(key, 0.0)
            self.memory[f"anchor.{name}"] = parameters[name].detach().clone()
