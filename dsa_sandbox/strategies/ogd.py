"""OGD: keeps updates orthogonal to stored gradients of the correct logits on past data.

Farajtabar et al. 2020 (arXiv 1910.07104, the variant of the ground-truth logit, section 3): later
steps stay orthogonal to the gradient of the correct token's logit, a mean over the targets of each
sequence. The number of directions is constant: a streaming SVD keeps the leading ones (as PCA-OGD,
Doan et al. 2021, arXiv 2010.04003), with equal weight for every sequence. Pre-training comes first.

AdamW, which every strategy uses, rescales gradients: the gradient is projected so that the moments
hold no stored direction, and then the optimiser's step, which is the one that has to be orthogonal.
The method is a first-order argument: on `dsa` it holds while the selected keys stay the same.

K directions, M targets, N trained numbers.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainee


class OgdSettings(Frozen):
    """Number of stored directions, each as large as the trained parameters."""

    directions: int = Field(64, ge=1, description="Maximum number of stored gradient directions.")
    pretraining: int = Field(
        32, ge=0, description="Pre-training sequences, one gradient direction each."
    )
    per_task: int = Field(4, ge=1, description="Leading gradient directions added per task.")

    @model_validator(mode="after")
    def _fits(self) -> "OgdSettings":
        for name in ("pretraining", "per_task"):
            if getattr(self, name) > self.directions:
                raise ValueError(
                    f"{name}={getattr(self, name)} is more than directions={self.directions}"
                )
        return self


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """[N], the tensors flattened and concatenated; a copy."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def leading(rows_KN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest singular values [K] of the rows, and their right singular vectors [K, N].

    K is at most `most`; values below 1e-5 of the largest are rounding errors and left out.
    """
    _, values_K, directions_KN = torch.linalg.svd(rows_KN, full_matrices=False)
    above_K = values_K > 1e-5 * values_K[:1]
    values_K, directions_KN = values_K[above_K][:most], directions_KN[above_K][:most]
    # contiguous, as after a checkpoint: a product's rounding depends on the memory layout
    return values_K.clone(), directions_KN.clone(memory_format=torch.contiguous_format)


@strategies.register("ogd")
class Ogd(Strategy):
    """Memory holds `directions` [K, N] and their singular `values` [K].

    They are 0 at entries that a mask freezes.
    """

    Settings = OgdSettings
    corrects_weights = True

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        """The directions, and five times their size while the SVD adds new ones."""
        return 6 * 4 * self.settings.directions * trainee.num_trainable

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        num_trained = trainee.num_trainable
        self.memory["values"] = torch.zeros(0, device=trainee.device)
        self.memory["directions"] = torch.zeros(0, num_trained, device=trainee.device)
        rows = [
            self.logit_gradient(trainee, b) for b in islice(pretraining, self.settings.pretraining)
        ]
        self.remember(rows)

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        """Adds the leading directions of all stories; the SVD takes a few stories at a time."""
        per_task, stories = self.settings.per_task, iter(batches)
        rows: list[Tensor] = []
        while several := list(islice(stories, per_task)):
            rows += [self.logit_gradient(trainee, batch) for batch in several]
            values_K, directions_KN = leading(torch.stack(rows), per_task)
            rows = list(values_K.unsqueeze(1) * directions_KN)
        self.remember(rows)

    def logit_gradient(self, trainee: Trainee, batch: Batch) -> Tensor:
        """[N], the gradient of the mean logit of the correct tokens, scaled to length 1."""
        real_BT = batch.targets_BT != IGNORED
        x_BTD, _ = trainee.model.hidden(batch.tokens_BT)
        logits_MV = trainee.model.logits(x_BTD[real_BT])
        correct_M = logits_MV.gather(-1, batch.targets_BT[real_BT].unsqueeze(-1))
        parameters = trainee.parameters
        gradients = torch.autograd.grad(correct_M.mean(), list(parameters.values()))
        row_N = flat(trainee.masked(name, g) for name, g in zip(parameters, gradients))
        return row_N / row_N.norm()

    def remember(self, rows: list[Tensor]) -> None:
        """Keep the leading directions of the stored and the new ones."""
        if rows:
            old_KN = self.memory["values"].unsqueeze(1) * self.memory["directions"]
            rows_KN = torch.cat([old_KN, torch.stack(rows)])
            values_K, directions_KN = leading(rows_KN, self.settings.directions)
            self.memory |= {"values": values_K, "directions": directions_KN}

    def component(self, change_N: Tensor) -> Tensor:
        """[N], the component of a change within the span of the stored directions."""
        directions_KN = self.memory["directions"]
        return directions_KN.T @ (directions_KN @ change_N)

    @torch.no_grad()
    def transform_gradients(self, trainee: Trainee) -> None:
        parameters = trainee.parameters.values()
        self.before_N = flat(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        subtract(gradients, self.component(flat(gradients)))

    @torch.no_grad()
    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        parameters = list(trainee.parameters.values())
        subtract(parameters, self.component(flat(parameters) - self.before_N))


def subtract(tensors: Sequence[Tensor], numbers_N: Tensor) -> None:
    """Subtract a flattened change from the tensors in place."""
    parts = numbers_N.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.sub_(part.view_as(tensor))
