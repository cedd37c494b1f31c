"""Hit rates: how often the selected keys hold the token that an answer depends on, by layer.

By chance, K keys of t past tokens hold it with probability (K - forced) / (t - forced), where the
forced first and last tokens are never the token in question.
"""

from typing import Any

import torch

from dsa_sandbox.core.attention import TopKAttention
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.evaluation.scoring import Encoded, encode_items, padded
from dsa_sandbox.evaluation.selection import kept_keys
from dsa_sandbox.tasks.writing import Writer, gate_items


@torch.no_grad()
def hit_rates(model: Transformer, encoded: Encoded, places: list[int]) -> list[float]:
    """For each layer the share of rows whose answer's query selects the token at the row's place.

    Empty for a network without selection. The query is the token before the answer.
    """
    device = next(model.parameters()).device
    row_N = torch.arange(len(places), device=device)
    query_N = torch.tensor(encoded.starts, device=device) - 1
    place_N = torch.tensor(places, device=device)
    layers = kept_keys(model, padded(encoded.rows).to(device))
    return [float(kept_BTS[row_N, query_N, place_N].float().mean()) for kept_BTS in layers]


def chance_rate(model: Transformer, encoded: Encoded) -> float | None:
    """Mean over rows of (K - forced) / (t - forced), at most 1; None without selection."""
    attention = next((a for a in model.modules() if isinstance(a, TopKAttention)), None)
    if attention is None:
        return None
    num_forced = attention.num_sink + attention.num_local
    shares = []
    for num_past in encoded.starts:  # of the query that predicts the answer, itself included
        shares.append(min(1.0, (attention.num_kept - num_forced) / (num_past - num_forced)))
    return sum(shares) / len(shares)


def far_worlds(model: Transformer, writer: Writer) -> dict[str, Any] | None:
    """Hit rates of the names of practice worlds that stand at least 2K tokens before the answer.

    None for a network without selection, and where the tokenizer has no item.
    """
    inside, _ = gate_items(writer)
    far = [one for one in inside if one.distance == "far"]
    if not far:
        return None
    encoded = encode_items(far, writer.tokenizer)
    distances = [one.tokens or 0 for one in far]
    places = [start - distance for start, distance in zip(encoded.starts, distances)]
    by_layer = hit_rates(model, encoded, places)
    if not by_layer:
        return None
    chance = chance_rate(model, encoded)
    return {"by_layer": by_layer, "chance": chance, "num": len(far)}
