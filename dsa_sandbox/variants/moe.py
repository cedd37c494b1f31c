"""`model.ffn=moe`: shared and routed experts in place of one feed-forward, as in DeepSeek-V3.

DeepSeek-V3 report (arXiv 2412.19437), section 2.1.2, eq. 12-16, with all experts in one group. A
bias balances their load (arXiv 2408.15664); there is no balance loss, and no token is dropped. The
arithmetic is that of `DeepseekV32MoE` of transformers.

B batch, T tokens, M tokens of a whole batch, D width, E routed experts, F hidden width of an
expert, K experts of a token, P = M * K pairs of a token and one of its experts, L pairs of one
expert.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import linear
from dsa_sandbox.core.rope import at_least_fp32
from dsa_sandbox.core.transformer import FeedForward
from dsa_sandbox.registry import feedforwards
from dsa_sandbox.sizes import expert_width


class Experts(nn.Module):
    """Routed experts, each a SwiGLU; the matrices of all experts are stacked."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.gate = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden))

    def forward(self, x_MD: Tensor, ids_MK: Tensor, weights_MK: Tensor) -> Tensor:
        """The weighted sum of the outputs of each token's experts, [M, D].

        The gradient of an expert that no token chose is zero, not None.
        """
        num_active = ids_MK.shape[1]
        # sorted by expert, so that each expert multiplies one slice of tokens
        order_P = ids_MK.flatten().argsort(stable=True)
        x_PD = x_MD.index_select(0, order_P // num_active)
        slices = x_PD.split(load_of(ids_MK, len(self.up)).tolist())
        matrices = zip(self.gate.unbind(), self.up.unbind(), self.down.unbind())
        outputs = []
        for x_LD, (gate_FD, up_FD, down_DF) in zip(slices, matrices):  # L tokens, maybe none
            hidden_LF = F.silu(F.linear(x_LD, gate_FD)) * F.linear(x_LD, up_FD)
            outputs.append(F.linear(hidden_LF, down_DF))
        y_PD = torch.cat(outputs).index_select(0, order_P.argsort())  # back in the order of tokens
        y_MKD = y_PD.unflatten(0, ids_MK.shape)
        return (y_MKD * weights_MK.unsqueeze(-1)).sum(1)


@feedforwards.register("moe")
class Mixture(nn.Module):
    """A mixture of experts: shared ones for every token, and K routed ones by the router's choice.

    `hidden` is the width of all experts together. Routed experts have the same width in every
    architecture (sizes.expert_width); the shared ones, computed as one feed-forward, have the rest.
    """

    bias: Tensor  # [E], added to the affinities when experts are chosen

    def __init__(self, model: Model, hidden: int) -> None:
        super().__init__()
        self.num_active = model.num_active
        self.routed_scale = model.routed_scale
        width = expert_width(model)
        self.shared = FeedForward(model, hidden - model.num_experts * width)
        self.experts = Experts(model.num_experts, model.width, width)
        self.router = linear(model.width, model.num_experts)
        self.register_buffer("bias", torch.zeros(model.num_experts))
        # ids [B, T, K] of each forward pass, while `Balance` or a diagnostic records them
        self.seen: list[Tensor] | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Output [B, T, D]."""
        x_MD = x_BTD.flatten(0, -2)
        ids_MK, weights_MK = self.route(x_MD)
        if self.seen is not None:
            self.seen.append(ids_MK.unflatten(0, x_BTD.shape[:-1]))
        return self.shared(x_BTD) + self.experts(x_MD, ids_MK, weights_MK).view_as(x_BTD)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """The ids [M, K] of each token's experts, and the weights [M, K] of their outputs, in fp32.

        A token's experts are the K with the highest affinity + bias (equal ones in the order of
        `torch.topk`). Weights are the affinities without bias, scaled to a sum of `routed_scale`.
        """
        with torch.autocast(x_MD.device.type, enabled=False):  # many bf16 affinities would be equal
            affinity_ME = F.linear(at_least_fp32(x_MD), at_least_fp32(self.router.weight)).sigmoid()
        ids_MK = (affinity_ME + self.bias).topk(self.num_active).indices
        affinity_MK = affinity_ME.gather(1, ids_MK)
        sum_M1 = affinity_MK.sum(-1, keepdim=True) + 1e-20  # the epsilon of transformers
        return ids_MK, self.routed_scale * affinity_MK / sum_M1


def load_of(ids: Tensor, num_experts: int) -> Tensor:
    """How many tokens chose each expert, [E]."""
    return torch.bincount(ids.flatten(), minlength=num_experts)


def mixtures(model: nn.Module) -> list[Mixture]:
    """The mixtures of a network, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, Mixture)]


def leave_uncompiled(model: nn.Module) -> None:
    """Exclude routed experts from `torch.compile`, as the lengths of their slices vary."""
    for mixture in mixtures(model):
        eager = torch.compiler.disable(mixture.experts.forward)
        mixture.experts.forward = eager  # type: ignore[method-assign]


class Balance:
    """Evens out the load of experts: after a step, b += rate * sign(mean load - load).

    arXiv 2408.15664. The load is counted over the whole step, without padding. Does nothing for a
    network without experts.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.mixtures = mixtures(model)
        self.rate = rate
        self.real: list[Tensor] = []

    def watch(self, real: Iterable[Tensor]) -> None:
        """Record who is chosen in the coming batches; `real` [B, T] is False at their padding."""
        self.real = list(real)
        for mixture in self.mixtures:
            mixture.seen = []

    def move(self) -> None:
        """Move the biases by the loads recorded since `watch`; without recording, do nothing."""
        for mixture in self.mixtures:
            if mixture.seen is None:
                continue
            chosen = []
            for ids_BTK, real_BT in zip(mixture.seen, self.real):
                chosen.append(ids_BTK[real_BT.to(ids_BTK.device)])
            load_E = load_of(torch.cat(chosen), len(mixture.bias)).float()
            mixture.bias += self.rate * (load_E.mean() - load_E).sign()
            mixture.seen = None
