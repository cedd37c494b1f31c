"""Grammatical minimal pairs: which form a network, or a bigram, finds more probable.

N tokens, V vocabulary.
"""

import numpy as np
from tokenizers import Tokenizer

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.grammar import Pair
from dsa_sandbox.data.spelling import common_length
from dsa_sandbox.data.tokens import Packed, encode
from dsa_sandbox.evaluation.scoring import Encoded, boundary_of, encode_items, score
from dsa_sandbox.tasks.schema import Item


def pair_accuracy(model: Transformer, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """Share of minimal pairs with a more probable good form, by kind; a tie is a failure."""
    return pair_shares(model, pairs, encode_pairs(pairs, tokenizer), tokenizer)


def fitting_pairs(pairs: list[Pair], tokenizer: Tokenizer, context: int) -> list[Pair]:
    """The pairs with both forms within a context."""
    found = []
    for pair in pairs:
        rows = encode_pairs([pair], tokenizer).rows
        if max(len(row) for row in rows) <= context:
            found.append(pair)
    return found


def encode_pairs(pairs: list[Pair], tokenizer: Tokenizer) -> Encoded:
    """Pairs as items with one foil."""
    items = [Item(prompt=pair.prefix, answer=pair.good, contrary=pair.bad) for pair in pairs]
    return encode_items(items, tokenizer)


def pair_shares(
    model: Transformer, pairs: list[Pair], encoded: Encoded, tokenizer: Tokenizer
) -> dict[str, float]:
    """As `pair_accuracy`, from encoded pairs."""
    return by_kind(pairs, [one.margin > 0 for one in score(model, encoded, tokenizer)])


def bigram_accuracy(packed: Packed, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """As `pair_accuracy`, by counts of token pairs in the training text; a tie counts one half.

    The counted token is the first that the two forms do not share, after the token before it; for
    a form that ends there, any token that ends a word.
    """
    ids = np.asarray(packed.ids)
    boundary_V = boundary_of(tokenizer.to_str()).numpy()
    following: dict[int, np.ndarray] = {}  # all tokens that follow a token in the text
    right = []
    for pair in pairs:
        good = encode(tokenizer, pair.prefix + pair.good)
        bad = encode(tokenizer, pair.prefix + pair.bad)
        place = common_length(good, bad)
        last = good[place - 1]
        if last not in following:
            following[last] = ids[1:][ids[:-1] == last]
        counts = [count_next(following[last], form, place, boundary_V) for form in (good, bad)]
        right.append(1.0 if counts[0] > counts[1] else 0.5 if counts[0] == counts[1] else 0.0)
    return by_kind(pairs, right)


def count_next(next_N: np.ndarray, form: list[int], place: int, boundary_V: np.ndarray) -> int:
    """Number of following tokens that continue a form at a place, or end the word with it."""
    if place < len(form):
        return int((next_N == form[place]).sum())
    return int(boundary_V[next_N].sum())


def by_kind(pairs: list[Pair], right: list[bool] | list[float]) -> dict[str, float]:
    """Mean of `right` for each kind of pair."""
    values: dict[str, list[float]] = {}
    for pair, share in zip(pairs, right):
        values.setdefault(pair.kind, []).append(share)
    return {kind: float(np.mean(values[kind])) for kind in sorted(values)}
