"""The training loop of pre-training and fine-tuning: it computes and yields; the caller decides.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsa_sandbox.core.transformer import Transformer, token_nll
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.sizes import group_of


class Phase(NamedTuple):
    """The learning rates of one step, and what it trains."""

    rate: float  # factor on the learning rate of every parameter group
    sparse: bool = True  # the selected flow attends to its top-k only
    train_indexer: bool = False  # with its KL loss
    # the queries, of T, that the KL loss is computed for: all, or a mask
    queries: Callable[[int], Tensor | bool] = lambda length: True
    at_targets: bool = False  # the KL loss where some sequence has a target: all that it counts
    name: str = "sparse"
    indexer_rate: float = 1.0  # one more factor, for the indexer's parameter group


class Step(NamedTuple):
    """Figures of one step."""

    number: int  # of steps done, from 1
    loss: float  # nats per token, all tokens alike
    penalty: float  # added to the loss by the strategy
    grad_norm: float  # of the trunk, before clipping
    num_tokens: int
    phase: str
    indexer_kl: float  # nats per query and layer; 0 where the indexer is not trained


def all_alike(batch: Batch) -> Tensor:
    """[B, T] weights of 1."""
    return torch.ones_like(batch.targets_BT, dtype=torch.float32)


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
    weights_of: Callable[[Batch], Tensor] = all_alike,
    auxiliary_loss: Callable[[Batch, Tensor], Tensor | float] = lambda batch, x_BTD: 0.0,
    before_update: Callable[[], float] = lambda: 0.0,
    after_step: Callable[[], None] = lambda: None,
    forward: Callable[..., tuple[Tensor, list[Tensor]]] | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[Step]:
    """Yield after each optimiser step from `start` + 1 to `stop`.

    `batches_at(step)` gives the micro-batches of a step; their gradients add up to the gradient of
    the mean loss over all targets of the step, each weighted by `weights_of` its batch: the
    weighted sum over the sum of the weights. The trunk (by default all trainable parameters but the
    indexer's) and the indexer are clipped separately, to `clip` and `indexer_clip`.

    A strategy enters at three places: `auxiliary_loss`, of a batch and its hidden states, is added
    to the language loss; `before_update` may add to the gradients or change them before they are
    clipped, and returns what it added to the loss; `after_step` may change the weights.
    """
    forward = forward or model.hidden
    device = next(model.parameters()).device
    # logits are computed for a limited number of targets at a time: the allocator returns blocks of
    # more than a few MB to the system, and a CPU is slow to get them again at every step
    # (machine.keep_freed_memory)
    num_at_once = 2**20
    if device.type == "cpu":
        num_at_once = max(1, 2**20 // model.embedding.num_embeddings)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    indexer = [p for n, p in trainable if group_of(n) == "indexer"]
    trunk = trunk or [p for n, p in trainable if group_of(n) != "indexer"]
    for number in range(start, stop):
        phase = phase_at(number)
        for group, rate in zip(optimizer.param_groups, base_rates):
            group["lr"] = rate * phase.rate * (phase.indexer_rate if group.get("indexer") else 1.0)
        batches = batches_at(number)
        num_tokens = sum(batch.num_targets for batch in batches)
        weights = [weights_of(batch)[batch.targets_BT != IGNORED] for batch in batches]
        total_weight = sum(weights_M.sum().item() for weights_M in weights)
        loss_sum = kl_sum = 0.0
        optimizer.zero_grad(set_to_none=True)
        for batch, weights_M in zip(batches, weights):
            tokens_BT, targets_BT = batch.to(device)
            real_BT = targets_BT != IGNORED  # only these need logits
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                queries = phase.train_indexer and phase.queries(tokens_BT.shape[1])
                if phase.train_indexer and phase.at_targets:
                    queries = real_BT.any(0).nonzero().squeeze(1)
                x_BTD, losses = forward(tokens_BT, sparse=phase.sparse, train_indexer=queries)
                parts_x = x_BTD[real_BT].split(num_at_once)
                parts_y = targets_BT[real_BT].split(num_at_once)
                pairs = zip(parts_x, parts_y)
                nll_M = torch.cat([token_nll(model.logits(x), y) for x, y in pairs])
            objective = (nll_M * weights_M.to(device)).sum() / total_weight
            objective = objective + auxiliary_loss(batch, x_BTD)
            if losses:  # padding is left out; a sample of queries is scaled up to all of them
                real_BQ = real_BT if queries is True else real_BT[:, queries]
                scale = 1.0 if phase.at_targets else real_BT.numel() / real_BQ.numel()
                kl = torch.stack(losses)[:, real_BQ].sum() * scale
                objective = objective + kl / num_tokens
                kl_sum += kl.item() / len(losses)
            objective.backward()
            loss_sum += nll_M.sum().item()
        added = before_update()
        norm = nn.utils.clip_grad_norm_(trunk, clip)
        nn.utils.clip_grad_norm_(indexer, indexer_clip or clip)
        optimizer.step()
        after_step()
        loss, kl_mean = loss_sum / num_tokens, kl_sum / num_tokens
        yield Step(number + 1, loss, added, norm.item(), num_tokens, phase.name, kl_mean)
