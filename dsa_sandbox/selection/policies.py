"""Who chooses the keys of a sparse query: the indexer, or a control in its place.

* `learned`: the indexer.
* `window`: the last K tokens.
* `random`: K past tokens, by a hash of what the query is and where it stands.
* `oracle`: the K tokens that the same heads attend to most when they see all the past.
* `all`: no selection.

Forced tokens are kept, within K, whoever chooses.

B batch, T query tokens, S key tokens, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dsa_sandbox.core.attention import DsaAttention
from dsa_sandbox.core.indexer import causal_mask
from dsa_sandbox.core.rope import Table
from dsa_sandbox.core.transformer import Transformer

Scores = Callable[[Tensor], Tensor]  # [B, T, D] to [B, T, S]


def window(attention: DsaAttention, model: Transformer) -> Scores:
    """The later, the better."""

    def scores(x_BTD: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        return torch.arange(length, device=x_BTD.device).float().expand(batch, length, length)

    return scores


def random(attention: DsaAttention, model: Transformer) -> Scores:
    """A hash of what the query is, of where it stands, and of the key's position.

    A function of the query alone: causal, the same in any batch, and the same when asked again.
    """

    def scores(x_BTD: Tensor) -> Tensor:
        position_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        coarse_BT = (64 * x_BTD.detach().float()[..., :4]).round().long() @ MIX.to(x_BTD.device)
        return scrambled(scrambled(coarse_BT + position_T).unsqueeze(-1) + position_T).float()

    return scores


MIX = torch.tensor([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F])


def scrambled(number: Tensor) -> Tensor:
    """Whole numbers below 2**24, one for each, without order (Murmur3's finaliser, 32 bits)."""
    number = number & 0xFFFFFFFF
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        number = ((number ^ (number >> 15)) * multiplier) & 0xFFFFFFFF
    return (number ^ (number >> 16)) & 0xFFFFFF


def oracle(attention: DsaAttention, model: Transformer) -> Scores:
    """What the selected heads attend to when they see all the past."""

    @torch.no_grad()
    def scores(x_BTD: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        table = Table(model.cos_TH, model.sin_TH)
        past_BTS = causal_mask(length, x_BTD.device).expand(batch, length, length)
        return attention.attend_with_teacher(x_BTD, table, past_BTS)[1]

    return scores


CONTROLS = {"window": window, "random": random, "oracle": oracle}


def selects(model: Transformer) -> bool:
    """Whether there is a selection to make in any layer."""
    return any(isinstance(block.attention, DsaAttention) for block in model.blocks)


def use(model: Transformer, policy: str) -> None:
    """Let `policy` choose from now on; a network without a selection is left as it is."""
    for block in model.blocks:
        attention = block.attention
        if not isinstance(attention, DsaAttention):
            continue
        vars(attention).pop("scores", None)  # what stood in the place of the indexer's
        own = vars(attention).setdefault("own_num_kept", attention.num_kept)
        attention.num_kept = model.context if policy == "all" else own
        if policy in CONTROLS:
            attention.scores = CONTROLS[policy](attention, model)  # type: ignore[method-assign,assignment]


@contextmanager
def using(model: Transformer, policy: str, then: str) -> Iterator[None]:
    """Let `policy` choose within the block, and `then` behind it."""
    use(model, policy)
    try:
        yield
    finally:
        use(model, then)
