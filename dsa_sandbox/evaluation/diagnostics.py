"""Diagnostics of indexers and experts: figures of each layer, on held-out text.

B batch, T query tokens, S key tokens, N heads, E experts, K experts of a token.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsa_sandbox.core.indexer import causal_mask, forced_mask, indexer_kl, select, selected_mask
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, batch_of
from dsa_sandbox.variants import moe


@torch.no_grad()
def indexer_health(
    model: Transformer, documents: list[np.ndarray], *, sparse: bool
) -> list[dict[str, float]]:
    """One row per layer, means over the queries of the documents (padding left out).

    kl: nats, over the selected keys if `sparse`, else over all past keys; kl_captured: 1 - kl / the
    KL of a uniform choice; recall: share of the dense teacher's attention on the selected keys;
    tie_rate: share of queries whose last selected and best unselected score are equal, forced keys
    left out; density: selected keys / past keys; overlap: share of the selected keys among those
    that the teacher over all past keys would select, forced keys left out of both, over the queries
    that have a choice (NaN where none has).
    """
    device = next(model.parameters()).device
    tokens_BT, targets_BT = batch_of(documents).to(device)
    rows: list[dict[str, float]] = []

    def measure(attention: Any, inputs: tuple[Any, ...]) -> None:
        rows.append(layer_row(attention, inputs[0], inputs[1], targets_BT != IGNORED, sparse))

    hooks = [block.attention.register_forward_pre_hook(measure) for block in model.blocks]  # type: ignore[union-attr]
    try:
        model(tokens_BT, sparse=sparse)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def layer_row(
    attention: Any, x_BTD: Tensor, table: Any, real_BT: Tensor, sparse: bool
) -> dict[str, float]:
    """The row of one layer, from the inputs of its attention."""
    length = x_BTD.shape[1]
    scores_BTS = attention.selection_scores(x_BTD)
    sizes = (attention.num_kept, attention.num_sink, attention.num_local)
    kept_BTS = selected_mask(select(scores_BTS, *sizes), length)
    past_BTS = causal_mask(length, x_BTD.device).expand_as(kept_BTS)
    support_BTS = kept_BTS if sparse else past_BTS
    teacher_BTS = attention.attend_with_teacher(x_BTD, table, support_BTS)[1]
    dense_BTS = attention.attend_with_teacher(x_BTD, table, past_BTS)[1]
    oracle_BTS = selected_mask(select(dense_BTS, *sizes), length)
    forced_TS = forced_mask(length, length, *sizes[1:], x_BTD.device)
    row = indexer_means(
        scores_BTS, teacher_BTS, support_BTS, dense_BTS, kept_BTS, forced_TS, real_BT
    )
    return row | {"overlap": overlap(kept_BTS, oracle_BTS, forced_TS, real_BT)}


def indexer_means(
    scores_BTS: Tensor,
    teacher_BTS: Tensor,
    support_BTS: Tensor,
    dense_BTS: Tensor,
    kept_BTS: Tensor,
    forced_TS: Tensor,
    real_BT: Tensor,
) -> dict[str, float]:
    """Means over the queries that are `real_BT`, as `indexer_health` defines them."""
    past_TS = causal_mask(scores_BTS.shape[-1], scores_BTS.device)
    worst_kept_BT = scores_BTS.masked_fill(~kept_BTS | forced_TS, torch.inf).amin(-1)
    best_left_BT = scores_BTS.masked_fill(kept_BTS | ~past_TS, -torch.inf).amax(-1)
    values = {
        "kl": indexer_kl(scores_BTS, teacher_BTS, support_BTS),
        "kl_uniform": indexer_kl(torch.zeros_like(scores_BTS), teacher_BTS, support_BTS),
        "recall": (dense_BTS * kept_BTS).sum(-1),
        "tie_rate": (worst_kept_BT == best_left_BT).float(),
        "density": kept_BTS.sum(-1) / past_TS.sum(-1),
    }
    row = {name: float(value_BT[real_BT].mean()) for name, value_BT in values.items()}
    uniform = row["kl_uniform"]
    return row | {"kl_captured": 1 - row["kl"] / uniform if uniform > 0 else 0.0}


def overlap(kept_BTS: Tensor, oracle_BTS: Tensor, forced_TS: Tensor, real_BT: Tensor) -> float:
    """Share of the selected keys that the oracle also selects, as `indexer_health` defines it."""
    past_TS = causal_mask(kept_BTS.shape[-1], kept_BTS.device)
    free_BTS = kept_BTS & ~forced_TS
    chosen_BT = free_BTS.sum(-1)
    common_BT = (free_BTS & oracle_BTS).sum(-1)
    choice_BT = real_BT & (chosen_BT > 0) & (kept_BTS.sum(-1) < past_TS.sum(-1))
    return float((common_BT / chosen_BT)[choice_BT].mean())


@torch.no_grad()
def expert_health(
    model: Transformer, documents: list[np.ndarray], *, sparse: bool
) -> list[dict[str, float]]:
    """One row per layer, over the tokens of the documents (padding left out).

    load_max: tokens of the busiest expert over the mean; load_entropy: entropy of the load over
    that of an even load. No token is ever dropped.
    """
    device = next(model.parameters()).device
    tokens_BT, targets_BT = batch_of(documents).to(device)
    layers = moe.mixtures(model)
    for layer in layers:
        layer.seen = []
    model(tokens_BT, sparse=sparse)
    rows = []
    for layer in layers:
        (ids_BTK,) = layer.seen or []
        layer.seen = None
        load_E = moe.load_of(ids_BTK[targets_BT != IGNORED], len(layer.bias)).double()
        entropy = torch.special.entr(load_E / load_E.sum()).sum() / math.log(len(load_E))
        rows.append(
            {
                "load_max": float(load_E.max() / load_E.mean()),
                "load_entropy": float(entropy),
            }
        )
    return rows
