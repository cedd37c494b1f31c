"""The loop that pre-training and fine-tuning share: it computes and yields, the caller decides.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.sizes import group_of


class Phase(NamedTuple):
    """What one step does: rates, and what learns."""

    rate: float  # multiplies every group's own rate
    sparse: bool = True  # the selected flow sees its top-k only
    teach: bool = False  # the indexer learns from its KL loss
    queries: Callable[[int], Tensor | bool] = lambda length: True  # those of T it is taught about
    trunk: bool = True  # everything else learns from the language loss
    name: str = "sparse"
    indexer_rate: float = 1.0  # multiplies the rate of the indexer's group once more


class Step(NamedTuple):
    """What one step did."""

    number: int  # of steps done, from 1
    loss: float  # nats per token
    penalty: float  # what the strategy added
    grad_norm: float  # of the trunk, before clipping
    num_tokens: int
    phase: str
    indexer_kl: float  # nats per query and layer, where the indexer learns


def train(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches_at: Callable[[int], list[Batch]],
    phase_at: Callable[[int], Phase],
    *,
    start: int,
    stop: int,
    clip: float,
    indexer_clip: float | None = None,
    trunk: list[nn.Parameter] | None = None,
    beside: Callable[[Batch, Tensor], Tensor | float] = lambda batch, x_BTD: 0.0,
    before_update: Callable[[], float] = lambda: 0.0,
    after_step: Callable[[], None] = lambda: None,
    forward: Callable[..., tuple[Tensor, list[Tensor]]] | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[Step]:
    """Yield after each optimiser step from `start` + 1 to `stop`.

    `batches_at(step)` gives the micro-batches of a step; their gradients add up to that of the mean
    over all its tokens. Trunk (what moves of the model, or what a strategy trains in its place) and
    indexer have gradient norms of their own, and limits of their own where `indexer_clip` is given.

    A strategy enters at three places: `beside` gives a loss beside the language loss, of a batch
    and its hidden states; `before_update` may add to the gradients or change them, before they are
    clipped (it returns what was added to the loss); `after_step` may change the weights.
    """
    forward = forward or model.hidden
    device = next(model.parameters()).device
    # so many targets' logits are made at a time: memory of more than a few MB is given back when it
    # is freed (machine.keep_freed_memory), and a CPU is slow to take it again at every step
    piece = max(1, 2**20 // model.embedding.num_embeddings) if device.type == "cpu" else 2**20
    base_rates = [group["lr"] for group in optimizer.param_groups]
    moving = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    indexer = [p for n, p in moving if group_of(n) == "indexer"]
    trunk = trunk or [p for n, p in moving if group_of(n) != "indexer"]
    for number in range(start, stop):
        phase = phase_at(number)
        for group, rate in zip(optimizer.param_groups, base_rates):
            group["lr"] = rate * phase.rate * (phase.indexer_rate if group.get("indexer") else 1.0)
        for parameter in trunk:
            parameter.requires_grad_(phase.trunk)
        batches = batches_at(number)
        num_tokens = sum(batch.num_targets for batch in batches)
        loss_sum = kl_sum = 0.0
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            tokens_BT, targets_BT = batch.to(device)
            real_BT = targets_BT != IGNORED  # the rest needs no logits
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                rows = phase.teach and phase.queries(tokens_BT.shape[1])
                x_BTD, losses = forward(tokens_BT, sparse=phase.sparse, train_indexer=rows)
                pieces = (part.split(piece) for part in (x_BTD[real_BT], targets_BT[real_BT]))
                nll = torch.stack([nll_sum(model.logits(x), y) for x, y in zip(*pieces)]).sum()
            objective = nll / num_tokens if phase.trunk else nll.new_zeros(())
            objective = objective + beside(batch, x_BTD)
            if losses:  # padding teaches nothing
                taught_BQ = real_BT if rows is True else real_BT[:, rows]
                kl = torch.stack(losses)[:, taught_BQ].sum() * (real_BT.numel() / taught_BQ.numel())
                objective = objective + kl / num_tokens
                kl_sum += kl.item() / len(losses)
            objective.backward()
            loss_sum += nll.item()
        added = before_update()
        norm, _ = map(nn.utils.clip_grad_norm_, (trunk, indexer), (clip, indexer_clip or clip))
        optimizer.step()
        after_step()
        loss, kl_mean = loss_sum / num_tokens, kl_sum / num_tokens
        yield Step(number + 1, loss, added, norm.item(), num_tokens, phase.name, kl_mean)
