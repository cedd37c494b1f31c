"""OGD: keeps updates orthogonal to stored gradients of the correct logits on past data.

Farajtabar et al. 2020 (arXiv 1910.07104, the variant of the ground-truth logit, section 3): the
gradient of the logit of what really follows, mean over the targets of a sequence, is a direction
that later steps keep orthogonal to. The number of directions is constant: those that most
sequences share are kept, by a streaming SVD (as PCA-OGD, Doan et al. 2021, arXiv 2010.04003), every
sequence counted alike. Pre-training sequences come first.

AdamW, common to all strategies, rescales gradients: the gradient is projected for the sake of its
moments, and the step that it makes once more, which is what the method is about. A key that is no
longer selected is no matter of first order: on `dsa` the promise holds as long as selections do.

K directions, N numbers that move.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy


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
    """[N]: all numbers of the tensors, end to end; a copy."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def leading(rows_KN: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest singular values [K] of the rows, and their directions [K, N], orthonormal.

    At most `most`, and none that is but rounding.
    """
    _, values_K, directions_KN = torch.linalg.svd(rows_KN, full_matrices=False)
    real_K = values_K > 1e-5 * values_K[:1]
    values_K, directions_KN = values_K[real_K][:most], directions_KN[real_K][:most]
    # rows in order, as a checkpoint has them: products round otherwise by another layout
    return values_K.clone(), directions_KN.clone(memory_format=torch.contiguous_format)


@strategies.register("ogd")
class Ogd(Strategy):
    """Memory holds `directions` [K, N] and their `values` [K].

    Beside a mask that moves a tensor in part, they are 0 where it stands still.
    """

    Settings = OgdSettings
    corrects_weights = True

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        """The directions, and five times their room while new ones are joined to them."""
        moved = sum(p.numel() for p in self.moved(model).values())
        return 6 * 4 * self.settings.directions * moved

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        device = next(model.parameters()).device
        num_moved = sum(p.numel() for p in self.moved(model).values())
        self.memory["values"] = torch.zeros(0, device=device)
        self.memory["directions"] = torch.zeros(0, num_moved, device=device)
        rows = [self.row(model, b) for b in islice(pretraining, self.settings.pretraining)]
        self.remember(rows)

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        """The leading directions of all stories, found a few stories at a time."""
        per_task, stories = self.settings.per_task, iter(batches)
        rows: list[Tensor] = []
        while several := list(islice(stories, per_task)):
            rows += [self.row(model, batch) for batch in several]
            values_K, directions_KN = leading(torch.stack(rows), per_task)
            rows = list(values_K.unsqueeze(1) * directions_KN)
        self.remember(rows)

    def row(self, model: Transformer, batch: Batch) -> Tensor:
        """[N]: the gradient of the mean logit of what follows, of length 1."""
        real_BT = batch.targets_BT != IGNORED
        logits_MV = model.logits(model.hidden(batch.tokens_BT)[0][real_BT])
        right_M = logits_MV.gather(-1, batch.targets_BT[real_BT].unsqueeze(-1))
        moved = self.moved(model)
        gradients = torch.autograd.grad(right_M.mean(), list(moved.values()))
        row_N = flat(g * self.free.get(name, 1) for name, g in zip(moved, gradients))
        return row_N / row_N.norm()

    def remember(self, rows: list[Tensor]) -> None:
        """Of old and new directions, keep the leading ones."""
        if rows:
            old_KN = self.memory["values"].unsqueeze(1) * self.memory["directions"]
            kept = leading(torch.cat([old_KN, torch.stack(rows)]), self.settings.directions)
            self.memory["values"], self.memory["directions"] = kept

    def within(self, change_N: Tensor) -> Tensor:
        """[N]: the part of a change that lies within the directions."""
        directions_KN = self.memory["directions"]
        return directions_KN.T @ (directions_KN @ change_N)

    @torch.no_grad()
    def project(self, model: Transformer) -> None:
        moved = list(self.moved(model).values())
        self.before = flat(moved)
        gradients = [p.grad for p in moved if p.grad is not None]
        subtract(gradients, self.within(flat(gradients)))

    @torch.no_grad()
    def after_step(self, model: Transformer, rate: float) -> None:
        moved = list(self.moved(model).values())
        subtract(moved, self.within(flat(moved) - self.before))


def subtract(tensors: Sequence[Tensor], numbers_N: Tensor) -> None:
    """Take numbers, end to end, from tensors in place."""
    parts = numbers_N.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts):
        tensor.sub_(part.view_as(tensor))
