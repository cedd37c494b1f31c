"""LoRA: trains low-rank factors, W = W_0 + alpha / rank B A; merges them after each task.

Hu et al. 2022, arXiv 2106.09685, eq. 3. B is 0 at the start of each task, and what a task has
learned is part of W_0 in the next: adapters do not pile up. The network has no modules for this.
W's own gradient G gives those of the factors, by the chain rule: dA = s B' G, dB = s G A'.
"""

import torch
from pydantic import Field
from torch import nn

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Place, Strategy
from dsa_sandbox.strategies.masks import moved_by_acft


class LoraSettings(Frozen):
    """Rank, scale and learning rate of the factors."""

    rank: int = Field(
        0, ge=0, description="Rank of B A; 0: the rank whose parameter count is nearest to acft's."
    )
    alpha: float = Field(16.0, gt=0, description="Scale of the update: W = W_0 + alpha / rank B A.")
    rate: float = Field(3.0, gt=0, description="Factor on the learning rate of A and B.")


@strategies.register("lora")
class Lora(Strategy):
    """Low-rank factors of every attention and feed-forward matrix; freezes all else.

    Memory, by name of the matrix: `.start` W_0 [.., out, in], `.a` [.., rank, in],
    `.b` [.., out, rank]. Routed experts have a pair each.
    """

    Settings = LoraSettings
    role = "mask"
    makes_weights = True

    def moves(self, model: Transformer) -> dict[str, float]:
        names = (n for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() > 1)
        matrices = (name for name in names if group_of(name) not in ("indexer", "router"))
        return dict.fromkeys(matrices, self.settings.rate)

    def rank(self, model: Transformer) -> int:
        """The rank of every product."""
        if self.settings.rank:
            return self.settings.rank
        of_rank_one = sum(
            p[..., 0].numel() + p[..., 0, :].numel() for p in self.moved(model).values()
        )
        return max(1, round(sum(moved_by_acft(model).values()) / of_rank_one))

    def scale(self, model: Transformer) -> float:
        """alpha / rank."""
        return self.settings.alpha / self.rank(model)

    def factors(self, model: Transformer) -> dict[str, nn.Parameter]:
        """A and B of every matrix, all zero."""
        found, rank = {}, self.rank(model)
        for name, matrix in self.moved(model).items():
            *several, num_out, num_in = matrix.shape
            found[f"{name}.a"] = nn.Parameter(matrix.new_zeros(*several, rank, num_in))
            found[f"{name}.b"] = nn.Parameter(matrix.new_zeros(*several, num_out, rank))
        return found

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        if not self.memory:  # asked before the first task, how many there will be
            return self.factors(model)
        found: dict[str, nn.Parameter] = {}
        for name in self.moved(model):
            for key in (f"{name}.a", f"{name}.b"):
                kept = self.memory[key]  # from a checkpoint it comes as a plain tensor
                found[key] = kept if isinstance(kept, nn.Parameter) else nn.Parameter(kept)
        self.memory |= found
        return found

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        kept = [*self.moved(model).values(), *self.factors(model).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def start_task(self, model: Transformer) -> None:
        matrices = self.moved(model)
        self.memory = {f"{name}.start": p.detach().clone() for name, p in matrices.items()}
        self.memory |= self.factors(model)

    @torch.no_grad()
    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        if place.step == 0:  # A as in the authors' code: uniform, +- in^-1/2
            generator = place.generator()
            for name in self.moved(model):
                a = self.memory[f"{name}.a"]
                uniform = torch.rand(a.shape, generator=generator).to(a)
                a.copy_((2 * uniform - 1) * a.shape[-1] ** -0.5)
        return []

    @torch.no_grad()
    def project(self, model: Transformer) -> None:
        scale = self.scale(model)
        for name, matrix in self.moved(model).items():
            a, b = self.memory[f"{name}.a"], self.memory[f"{name}.b"]
            if matrix.grad is not None:
                a.grad, b.grad = scale * b.mT @ matrix.grad, scale * matrix.grad @ a.mT
            matrix.grad = None  # the optimiser, which would do it, does not know it

    @torch.no_grad()
    def after_step(self, model: Transformer, rate: float) -> None:
        scale = self.scale(model)
        for name, matrix in self.moved(model).items():
            start, a, b = (self.memory[f"{name}.{key}"] for key in ("start", "a", "b"))
            matrix.copy_(start + scale * b @ a)
