"""Selection policies: the indexer selects the keys of each query, or a control does.

* `learned`: the indexer.
* `window`: the last K tokens.
* `random`: K past tokens by a hash of the query's input and of both positions.
* `oracle`: the K tokens to which the same heads attend most when they see all past tokens.
* `all`: all past tokens.

Under every policy, forced tokens are selected and count within K.

B batch, T query tokens, S key tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dsa_sandbox.core.attention import TopKAttention
from dsa_sandbox.core.indexer import causal_mask
from dsa_sandbox.core.transformer import Transformer

Selector = Callable[[Tensor], Tensor]  # input [B, T, D] of an attention layer to scores [B, T, S]


def window(attention: TopKAttention, model: Transformer) -> Selector:
    """The later a key, the higher its score."""

    def scores(x_BTD: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        return torch.arange(length, device=x_BTD.device).float().expand(batch, length, length)

    return scores


def random(attention: TopKAttention, model: Transformer) -> Selector:
    """Scores that are a hash of the query's input, the query's position and the key's position.

    They do not depend on other tokens, the batch, or how often they are computed.
    """

    def scores(x_BTD: Tensor) -> Tensor:
        position_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        # Four features, rounded: an input that is computed in another way (another batch size)
        # differs in its last bits and must get the same hash.
        coarse_BT4 = (64 * x_BTD.detach().float()[..., :4]).round().long()
        query_BT = coarse_BT4 @ FEATURE_MULTIPLIERS.to(x_BTD.device) + position_T
        return hashed(hashed(query_BT).unsqueeze(-1) + position_T).float()

    return scores


FEATURE_MULTIPLIERS = torch.tensor([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F])


def hashed(number: Tensor) -> Tensor:
    """A hash below 2**24 of each integer (the finaliser of Murmur3, 32 bits)."""
    number = number & 0xFFFFFFFF
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        number = ((number ^ (number >> 15)) * multiplier) & 0xFFFFFFFF
    return (number ^ (number >> 16)) & 0xFFFFFF  # 24 bits: exact in fp32


def oracle(attention: TopKAttention, model: Transformer) -> Selector:
    """The attention of the selecting heads over all past tokens, averaged over heads."""

    @torch.no_grad()
    def scores(x_BTD: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        past_BTS = causal_mask(length, x_BTD.device).expand(batch, length, length)
        return attention.attend_with_teacher(x_BTD, model.rope_2TH, past_BTS)[1]

    return scores


CONTROLS = {"window": window, "random": random, "oracle": oracle}


def selects(model: Transformer) -> bool:
    """Whether any layer of the network selects keys."""
    return any(isinstance(block.attention, TopKAttention) for block in model.blocks)


def use(model: Transformer, policy: str) -> None:
    """Select keys by `policy` from now on; does nothing for a network that selects no keys."""
    for block in model.blocks:
        attention = block.attention
        if not isinstance(attention, TopKAttention):
            continue
        if policy == "all":
            attention.num_kept = model.context
        else:
            attention.num_kept = attention.configured_num_kept
        control = CONTROLS.get(policy)
        attention.selector = control(attention, model) if control else None


@contextmanager
def using(model: Transformer, policy: str, then: str) -> Iterator[None]:
    """Select keys by `policy` inside the context, and by `then` after it."""
    use(model, policy)
    try:
        yield
    finally:
        use(model, then)
