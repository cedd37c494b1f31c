"""Keys that a network selects, and their similarity to the keys that its base selects.

B batch, T query tokens, S key tokens.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsa_sandbox.core.attention import TopKAttention
from dsa_sandbox.core.indexer import causal_mask, forced_mask, select, selected_mask
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, batch_of


@torch.no_grad()
def kept_keys(model: Transformer, tokens_BT: Tensor) -> list[Tensor]:
    """[B, T, S] of each layer, True where a query keeps a key; empty for a dense network.

    Computed from the input of each attention, by whatever policy selects its keys.
    """
    kept: list[Tensor] = []

    def look(attention: Any, inputs: tuple[Any, ...]) -> None:
        sizes = (attention.num_kept, attention.num_sink, attention.num_local)
        scores_BTS = attention.selection_scores(inputs[0])
        kept.append(selected_mask(select(scores_BTS, *sizes), scores_BTS.shape[-1]))

    attentions = [a for a in model.modules() if isinstance(a, TopKAttention)]
    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        if attentions:
            model.hidden(tokens_BT)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def jaccard(base: Transformer, model: Transformer, documents: list[np.ndarray]) -> list[float]:
    """Jaccard similarity of the keys that two networks select, by layer; empty for a dense network.

    Mean of |both| / |either| over the queries of the documents that have a choice, forced keys left
    out; NaN where no query has one.
    """
    device = next(model.parameters()).device
    tokens_BT, targets_BT = batch_of(documents).to(device)
    length = tokens_BT.shape[1]
    past_TS = causal_mask(length, device)
    attentions = [a for a in model.modules() if isinstance(a, TopKAttention)]
    layers = zip(attentions, kept_keys(base, tokens_BT), kept_keys(model, tokens_BT))
    found = []
    for attention, then_BTS, now_BTS in layers:
        num_forced = attention.num_sink, attention.num_local
        forced_TS = forced_mask(length, length, *num_forced, device)
        both_BT = ((then_BTS & now_BTS) & ~forced_TS).sum(-1)
        either_BT = ((then_BTS | now_BTS) & ~forced_TS).sum(-1)
        choice_BT = (past_TS.sum(-1) > attention.num_kept) & (either_BT > 0)
        choice_BT = choice_BT & (targets_BT != IGNORED)
        found.append(float((both_BT / either_BT)[choice_BT].mean()))
    return found
