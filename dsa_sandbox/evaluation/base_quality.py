"""Quality of a base: held-out text, grammar, known facts, and the world gate."""

import math
from typing import Any, NamedTuple

import numpy as np

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.data.tokens import Corpus, Packed, heldout
from dsa_sandbox.errors import RunFailed
from dsa_sandbox.evaluation.hit_rate import far_worlds
from dsa_sandbox.evaluation.pairs import bigram_accuracy, fitting_pairs, pair_accuracy
from dsa_sandbox.evaluation.recall import CHANCE, planted, recall, recall_bigram
from dsa_sandbox.evaluation.scoring import (
    bits_per_byte,
    encode_items,
    heldout_nll,
    sample_story,
    score,
)
from dsa_sandbox.tasks.schema import Item
from dsa_sandbox.tasks.writing import Writer, askable, gate_items, known_items

KNOWN_MARGIN = 0.5  # nats over the best other object of the relation
KNOWN_ITEMS = 4  # of 5 statements
NUM_PAIRS = 200
NUM_RECALL = 64  # items for each kind and distance


class Gate(NamedTuple):
    """Practice worlds: probability of the rule's object inside, and of the same object outside.

    None where the tokenizer has the words of no rule as single tokens.
    """

    right: float | None
    bleed: float | None

    @property
    def open(self) -> bool:
        """Whether the base lets a world's name decide: right >= 0.8 and bleed <= 0.2."""
        if self.right is None or self.bleed is None:
            return False
        return self.right >= 0.8 and self.bleed <= 0.2


def known_facts(model: Transformer, writer: Writer) -> tuple[list[Fact], int]:
    """Facts with a margin above KNOWN_MARGIN on KNOWN_ITEMS of five statements; number asked.

    Only facts whose words are single tokens are asked.
    """
    facts = askable(writer, grammar.table().facts)
    items = [item for fact in facts for item in known_items(writer, fact)]
    scores = score(model, encode_items(items, writer.tokenizer), writer.tokenizer)
    known = []
    for number, fact in enumerate(facts):
        five = scores[5 * number : 5 * number + 5]
        if sum(one.margin > KNOWN_MARGIN for one in five) >= KNOWN_ITEMS:
            known.append(fact)
    return known, len(facts)


def gate(model: Transformer, writer: Writer) -> Gate:
    """Mean probabilities over the rules of all practice worlds."""
    inside, outside = gate_items(writer)
    if not inside:
        return Gate(None, None)
    return Gate(mean_answer(model, inside, writer), mean_answer(model, outside, writer))


def mean_answer(model: Transformer, items: list[Item], writer: Writer) -> float:
    """Mean probability of the answers of items."""
    scores = score(model, encode_items(items, writer.tokenizer), writer.tokenizer)
    return float(np.mean([np.exp(one.answer) for one in scores]))


def text_quality(model: Transformer, part: Packed) -> dict[str, float]:
    """Negative log-likelihood (nats per token) and bits per byte of a whole part."""
    nats, count = heldout_nll(model, heldout(part, model.context, part.num_documents))
    return {"nll": nats / count, "bits_per_byte": bits_per_byte(nats, part.num_bytes)}


def base_quality(model: Transformer, corpus: Corpus, writer: Writer, seed: int) -> dict[str, Any]:
    """All figures that pre-training reports at its end, as plain values.

    RunFailed where the network has diverged.
    """
    valid = text_quality(model, corpus.valid)
    if not math.isfinite(valid["nll"]):
        raise RunFailed("held-out text has no finite loss; lower train.learning_rate")
    known, asked = known_facts(model, writer)
    pairs = grammar.minimal_pairs(seed=0, count=NUM_PAIRS)
    pairs = fitting_pairs(pairs, corpus.tokenizer, model.context)
    worlds = gate(model, writer)
    stated = planted(writer, NUM_RECALL)
    return {
        "valid": valid,
        "known_facts": len(known),
        "asked_facts": asked,
        "pairs": pair_accuracy(model, pairs, corpus.tokenizer),
        "pairs_bigram": bigram_accuracy(corpus.train, pairs, corpus.tokenizer),
        "gate": {"right": worlds.right, "bleed": worlds.bleed, "open": worlds.open},
        "recall": recall(model, stated, corpus.tokenizer),
        "recall_chance": CHANCE,
        "recall_bigram": recall_bigram(corpus.train, stated),
        "far_worlds": far_worlds(model, writer),
        "story": sample_story(model, corpus.tokenizer, "Once upon a time", seed),
    }
