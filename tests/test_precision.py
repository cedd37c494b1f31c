"""Networks work in fp64, to fp64's precision: an oracle for gradients."""

from typing import Any

import pytest
import torch
from tiny import some_tokens, tiny_model
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.selection import backends

NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("dsa", {}),
    ("dsa", {"compression": "block", "block_size": 4, "block_local": 2}),
    ("dsa", {"ffn": "moe", "num_experts": 4, "ffn_width": 96}),
    ("dsa-full", {}),
    ("dsa-v32", {}),
]


def loss_of(model: Transformer, tokens_BT: Tensor, train_indexer: bool = True) -> Tensor:
    """Language loss plus the indexer's KL loss, which has no gradient for other parameters."""
    x_BTD, losses = model.hidden(tokens_BT, train_indexer=train_indexer)
    loss = nll_sum(model.logits(x_BTD[:, :-1].flatten(0, 1)), tokens_BT[:, 1:].flatten())
    return loss + sum((kl.sum() for kl in losses), torch.zeros(()))


@pytest.mark.parametrize(("arch", "overrides"), NETWORKS)
def test_fp64_gives_the_loss_of_fp32_and_its_own_derivative(
    arch: str, overrides: dict[str, Any]
) -> None:
    single, tokens_BT = tiny_model(arch, **overrides), some_tokens(2, 24)
    double = tiny_model(arch, **overrides).double()
    loss = loss_of(double, tokens_BT)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.float(), loss_of(single, tokens_BT), rtol=1e-5, atol=0)
    loss_of(double, tokens_BT, train_indexer=False).backward()
    weights = double.get_parameter(next(n for n, _ in double.named_parameters() if "down" in n))
    assert weights.grad is not None
    direction = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)).double()
    slope = (weights.grad * direction).sum()
    values = []
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            weights.add_(step * direction)
            values.append(loss_of(double, tokens_BT, train_indexer=False))
            weights.sub_(step * direction)
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["masked", "gather", "reference"])
def test_every_backend_of_a_cpu_works_in_fp64(backend: str) -> None:
    tokens_BT, networks = some_tokens(2, 24), []
    for _ in range(2):
        networks.append(tiny_model("dsa").double())
    backends.use(networks[1], backend)
    losses = [loss_of(network, tokens_BT) for network in networks]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
