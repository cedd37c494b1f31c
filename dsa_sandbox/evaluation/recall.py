"""Recall by distance: a text states something arbitrary once and asks for it d tokens later.

Names of characters and objects of relations, as reading stories have them (tasks.stated). One item
in four is right by chance.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Packed
from dsa_sandbox.evaluation.hit_rate import chance_rate, hit_rates
from dsa_sandbox.evaluation.scoring import Encoded, encode_items, score
from dsa_sandbox.tasks.stated import KINDS, NUM_CANDIDATES, Kind, stated
from dsa_sandbox.tasks.writing import Writer

DISTANCES = (16, 32, 64, 128, 256, 400)  # tokens from the stated word to its gap
CHANCE = 1 / NUM_CANDIDATES


class Planted(NamedTuple):
    """Items of one kind and distance, encoded, and the place of each row's stated word."""

    kind: Kind
    distance: int
    encoded: Encoded
    said: list[int]


def planted(writer: Writer, count: int) -> list[Planted]:
    """`count` items for each kind and each distance that fits the context, the same for all bases.

    None of a kind of which the tokenizer has too few words as single tokens.
    """
    found: list[Planted] = []
    for kind in KINDS:
        for distance in DISTANCES:
            several = [stated(writer, kind, distance, number) for number in range(count)]
            fitting = [one for one in several if one is not None]
            if len(fitting) < count:  # larger distances do not fit either
                break
            encoded = encode_items([one.item for one in fitting], writer.tokenizer)
            found.append(Planted(kind, distance, encoded, [one.place for one in fitting]))
    return found


@torch.no_grad()
def recall(model: Transformer, items: list[Planted], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For each kind and distance the share of items right, and hit rates.

    A hit: the query that predicts the answer selects the place of the stated word. `hit` is the
    mean over (layer, item), `hit_by_layer` that of each layer, `hit_chance` the same for keys drawn
    at random; None for a network without selection.
    """
    rows = []
    for kind, distance, encoded, said in items:
        scores = score(model, encoded, tokenizer)
        right = sum(one.margin > 0 for one in scores) / len(scores)
        hits = hit_rates(model, encoded, said)
        row: dict[str, Any] = {"of": kind, "distance": distance, "num": len(scores), "right": right}
        row |= {"hit": float(np.mean(hits)) if hits else None}
        row |= {"hit_by_layer": hits or None, "hit_chance": chance_rate(model, encoded)}
        rows.append(row)
    return rows


def recall_bigram(packed: Packed, items: list[Planted]) -> float:
    """Share of the items right by counts of token pairs in the training text; ties are split."""
    ids = np.asarray(packed.ids)
    following: dict[int, np.ndarray] = {}  # all tokens that follow a token in the text
    right = []
    for one in items:
        for row, start, candidates in zip(one.encoded.rows, one.encoded.starts, one.encoded.shared):
            last = row[start - 1]
            if last not in following:
                following[last] = ids[1:][ids[:-1] == last]
            counts = [int((following[last] == candidate).sum()) for candidate in candidates or []]
            right.append((counts[0] == max(counts)) / counts.count(max(counts)))
    return float(np.mean(right)) if right else float("nan")
