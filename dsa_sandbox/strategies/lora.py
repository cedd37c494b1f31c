"""LoRA: trains low-rank factors, W = W_0 + alpha / rank B A; merges them after each task.

Hu et al. 2022, arXiv 2106.09685, eq. 3. B is 0 at the start of each task, whose W_0 holds the
updates of the tasks before: adapters do not accumulate. The network has no modules for the factors:
their gradients follow from W's gradient G by the chain rule, dA = s B' G and dB = s G A', with
s = alpha / rank.
"""

import torch
from pydantic import Field
from torch import nn

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Position, Strategy, Trainable, Trainee
from dsa_sandbox.strategies.masks import trained_by_acft


class LoraSettings(Frozen):
    """Rank, scale and learning rate of the factors."""

    rank: int = Field(
        0, ge=0, description="Rank of B A; 0: the rank whose parameter count is nearest to acft's."
    )
    alpha: float = Field(16.0, gt=0, description="Scale of the update: W = W_0 + alpha / rank B A.")
    rate: float = Field(1.0, gt=0, description="Factor on the learning rate of A and B.")


@strategies.register("lora")
class Lora(Strategy):
    """Low-rank factors of every attention and feed-forward matrix; freezes all else.

    Memory, by name of the matrix: `.start` W_0 [.., out, in], `.a` [.., rank, in],
    `.b` [.., out, rank]. Each routed expert has factors of its own.
    """

    Settings = LoraSettings
    role = "mask"
    rebuilds_weights = True

    def trainable(self, model: Transformer) -> Trainable:
        names = [
            name
            for name, parameter in model.named_parameters()
            if name.startswith("blocks.")
            and parameter.dim() > 1
            and group_of(name) not in ("indexer", "router")
        ]
        return Trainable(dict.fromkeys(names, self.settings.rate))

    def rank(self, trainee: Trainee) -> int:
        """The rank of every product B A."""
        if self.settings.rank:
            return self.settings.rank
        num_per_rank = sum(
            p[..., 0].numel() + p[..., 0, :].numel() for p in trainee.parameters.values()
        )
        return max(1, round(sum(trained_by_acft(trainee.model).values()) / num_per_rank))

    def scale(self, trainee: Trainee) -> float:
        """alpha / rank."""
        return self.settings.alpha / self.rank(trainee)

    def factors(self, trainee: Trainee) -> dict[str, nn.Parameter]:
        """A and B of every matrix, all zero."""
        rank = self.rank(trainee)
        factors = {}
        for name, matrix in trainee.parameters.items():
            *experts, num_out, num_in = matrix.shape
            factors[f"{name}.a"] = nn.Parameter(matrix.new_zeros(*experts, rank, num_in))
            factors[f"{name}.b"] = nn.Parameter(matrix.new_zeros(*experts, num_out, rank))
        return factors

    def adapters(self, trainee: Trainee) -> dict[str, nn.Parameter]:
        if not self.memory:  # before the first task: only their number is asked for
            return self.factors(trainee)
        factors: dict[str, nn.Parameter] = {}
        for name in trainee.parameters:
            for key in (f"{name}.a", f"{name}.b"):
                tensor = self.memory[key]  # a plain tensor where it comes from a checkpoint
                if not isinstance(tensor, nn.Parameter):
                    tensor = nn.Parameter(tensor)
                factors[key] = tensor
        self.memory |= factors
        return factors

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        factors = self.factors(trainee).values()
        return trainee.size_bytes + sum(f.numel() * f.element_size() for f in factors)

    def start_task(self, trainee: Trainee) -> None:
        self.memory = {f"{name}.start": weights for name, weights in trainee.copies().items()}
        self.memory |= self.factors(trainee)

    @torch.no_grad()
    def start_step(self, trainee: Trainee, position: Position) -> None:
        if position.step:
            return
        generator = position.generator()
        for name in trainee.parameters:  # A as in the authors' code: uniform, +- in^-1/2
            a = self.memory[f"{name}.a"]
            uniform = torch.rand(a.shape, generator=generator).to(a)
            a.copy_((2 * uniform - 1) * a.shape[-1] ** -0.5)

    @torch.no_grad()
    def transform_gradients(self, trainee: Trainee) -> None:
        scale = self.scale(trainee)
        for name, matrix in trainee.parameters.items():
            a, b = self.memory[f"{name}.a"], self.memory[f"{name}.b"]
            if matrix.grad is not None:
                a.grad, b.grad = scale * b.mT @ matrix.grad, scale * matrix.grad @ a.mT
            matrix.grad = None  # the optimiser does not hold this parameter, so it would not do it

    @torch.no_grad()
    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        scale = self.scale(trainee)
        for name, matrix in trainee.parameters.items():
            start, a, b = (self.memory[f"{name}.{key}"] for key in ("start", "a", "b"))
            matrix.copy_(start + scale * b @ a)
