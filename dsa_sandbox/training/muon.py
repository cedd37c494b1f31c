"""Muon: steps of equal size in every direction of a matrix (github.com/KellerJordan/Muon, 2024).

torch.optim.Muon works on one matrix at a time and in bf16, which a CPU is slow at: here all
matrices of one shape are one stack, in fp32, and three steps replace its five.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

MOMENTUM = 0.8
BETAS = (0.6, 0.95)  # of AdamW, for what is no matrix
# Coefficients (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, the best three such steps in
# turn for singular values in [0.01, 1] (Polar Express, arXiv 2505.16932, algorithm 1): these end
# within 0.27 of 1.
POLAR = (
    (8.093369, -23.62043, 17.44615),
    (3.636586, -2.721927, 0.5365463),
    (2.6613, -1.977155, 0.4526164),
)


def orthogonal(stack_NOI: Tensor) -> Tensor:
    """Every matrix of a stack with its singular values moved to about 1, after POLAR's steps."""
    wide = stack_NOI.shape[-2] <= stack_NOI.shape[-1]
    x = stack_NOI if wide else stack_NOI.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)  # none is above 1
    for a, b, c in POLAR:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(Optimizer):
    """Muon for the groups with `matrices`, AdamW with BETAS for the others.

    Nesterov momentum MOMENTUM; the update is scaled by 0.2 sqrt(max(out, in)), which is about the
    size of AdamW's (arXiv 2502.16982, eq. 4), so that both use one learning rate; decoupled weight
    decay. Parameters of more than two dimensions are stacks of matrices.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"matrices": False})
        others = [group for group in self.param_groups if not group["matrices"]]
        devices = {p.device.type for group in others for p in group["params"]}
        self.adamw = AdamW(others, betas=BETAS, fused=devices <= {"cpu", "cuda"})
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            if group["matrices"]:
                self.move(group)
        self.adamw.step()

    def move(self, group: dict[str, Any]) -> None:
        """Muon's step for the parameters of one group."""
        alike = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for shape, parameters in alike.items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                updates.append(parameter.grad.lerp(average, MOMENTUM))
            stack = orthogonal(torch.stack(updates).view(-1, *shape[-2:]))
            size = group["lr"] * 0.2 * max(shape[-2:]) ** 0.5
            for parameter, update in zip(parameters, stack.view(-1, *shape)):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
