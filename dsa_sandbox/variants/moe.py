"""`moe`: shared and routed experts in the place of one feed-forward, as DeepSeek-V3 has them.

DeepSeek-V3 report (arXiv 2412.19437), section 2.1.2, eq. 12-16, in one group of experts; they are
kept in use by a bias alone (arXiv 2408.15664), without a loss and without dropping a token. The
arithmetic is that of `DeepseekV32MoE` of transformers.

B batch, T tokens, M tokens of a whole batch, D width, E routed experts, F hidden width of one,
K experts of a token, P = M * K pairs of a token and one of its experts.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import linear
from dsa_sandbox.core.transformer import FeedForward
from dsa_sandbox.registry import feedforwards
from dsa_sandbox.sizes import expert_width


class Experts(nn.Module):
    """Routed experts, SwiGLU each; their matrices are stacked."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.gate = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden))

    def forward(self, x_MD: Tensor, ids_MK: Tensor, weights_MK: Tensor) -> Tensor:
        """[M, D]: of each token, what its experts make of it, weighted.

        Pairs are sorted by expert, so that each expert has one slice to multiply. An expert that
        nobody chose gets an empty slice, and a gradient of zeros.
        """
        num_active = ids_MK.shape[1]
        order_P = ids_MK.flatten().argsort(stable=True)
        slices = x_MD.index_select(0, order_P // num_active).split(
            load_of(ids_MK, len(self.up)).tolist()
        )
        matrices = zip(self.up.unbind(), self.gate.unbind(), self.down.unbind())
        made = [
            F.linear(F.silu(F.linear(x_PD, gate_FD)) * F.linear(x_PD, up_FD), down_DF)
            for x_PD, (up_FD, gate_FD, down_DF) in zip(slices, matrices)
        ]
        y_PD = torch.cat(made).index_select(0, order_P.argsort())  # back in the tokens' order
        return (y_PD.unflatten(0, ids_MK.shape) * weights_MK.unsqueeze(-1)).sum(1)


@feedforwards.register("moe")
class Mixture(nn.Module):
    """Shared experts that serve every token, and K routed ones that it chooses for itself.

    `hidden` is the width of all experts together. A routed expert is as wide in every architecture
    (sizes.expert_width); the shared ones, held as one feed-forward, have the rest.
    """

    bias: Tensor  # [E]: moves the choice and nothing else

    def __init__(self, model: Model, hidden: int) -> None:
        super().__init__()
        self.num_active, self.routed_scale = model.num_active, model.routed_scale
        width, num_experts = expert_width(model), model.num_experts
        self.shared = FeedForward(model, hidden - num_experts * width)
        self.experts = Experts(num_experts, model.width, width)
        self.router = linear(model.width, num_experts)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.seen: list[Tensor] | None = None  # who was chosen, [B, T, K], while Balance watches

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, -2)
        ids_MK, weights_MK = self.route(x_MD)
        if self.seen is not None:
            self.seen.append(ids_MK.unflatten(0, x_BTD.shape[:-1]))
        return self.shared(x_BTD) + self.experts(x_MD, ids_MK, weights_MK).view_as(x_BTD)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token its K experts, and the weights of what they make, in fp32.

        The K experts of highest affinity + bias; between equals as torch.topk decides. Weights are
        the affinities alone, scaled to a sum of `routed_scale`.
        """
        with torch.autocast(x_MD.device.type, enabled=False):  # half precision would tie scores
            affinity_ME = F.linear(x_MD.float(), self.router.weight.float()).sigmoid()
        ids_MK = (affinity_ME + self.bias).topk(self.num_active).indices
        chosen_MK = affinity_ME.gather(1, ids_MK)
        # the epsilon is transformers'
        return ids_MK, self.routed_scale * chosen_MK / (chosen_MK.sum(-1, keepdim=True) + 1e-20)


def load_of(ids: Tensor, num_experts: int) -> Tensor:
    """[E]: how often each expert was chosen."""
    return torch.bincount(ids.flatten(), minlength=num_experts)


def mixtures(model: nn.Module) -> list[Mixture]:
    """The mixtures of a network, from the first layer on."""
    return [module for module in model.modules() if isinstance(module, Mixture)]


def leave_uncompiled(model: nn.Module) -> None:
    """Keep routed experts out of `torch.compile`: their slices are as long as they happen to be."""
    for mixture in mixtures(model):
        eager = torch.compiler.disable(mixture.experts.forward)
        mixture.experts.forward = eager  # type: ignore[method-assign]


class Balance:
    """Keeps experts in use: after a step, b += rate * sign(mean load - load) (arXiv 2408.15664).

    The load is that of the whole step, padding left out. A network without experts has nothing to
    move.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.mixtures, self.rate = mixtures(model), rate
        self.real: list[Tensor] = []

    def watch(self, real: Iterable[Tensor]) -> None:
        """Count from now on, in the batches to come; `real` [B, T] is False at their padding."""
        self.real = list(real)
        for mixture in self.mixtures:
            mixture.seen = []

    def move(self) -> None:
        """Move the biases by what was counted since `watch`, if it was called."""
        for mixture in self.mixtures:
            if mixture.seen is None:
                continue
            chosen = [ids[real.to(ids.device)] for ids, real in zip(mixture.seen, self.real)]
            load_E = load_of(torch.cat(chosen), len(mixture.bias)).float()
            mixture.bias += self.rate * (load_E.mean() - load_E).sign()
            mixture.seen = None
