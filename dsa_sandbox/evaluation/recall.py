"""Recall by distance: a text states a fact once and asks for it d tokens later.

The fact is arbitrary (a subject, an object that is not its own, a world without rules), so that no
weight stores it. One item in four is right by chance.
"""

import random
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast, Fact
from dsa_sandbox.data.tokens import encode
from dsa_sandbox.evaluation.hit_rate import hit_rates
from dsa_sandbox.evaluation.scoring import Encoded, encode_items, score
from dsa_sandbox.tasks.schema import Item
from dsa_sandbox.tasks.writing import RETRIES, Writer

DISTANCES = (16, 32, 64, 128, 256, 400)  # tokens from the stated object to its gap
NUM_CANDIDATES = 4


class Planted(NamedTuple):
    """Items of one distance, encoded, and the place of each row's stated object."""

    distance: int
    encoded: Encoded
    said: list[int]


def planted(writer: Writer, count: int) -> list[Planted]:
    """`count` items for each distance that fits the context; the same for all networks."""
    facts = [fact for fact in grammar.table().facts if len(writer.usable(fact)) > NUM_CANDIDATES]
    found: list[Planted] = []
    for distance in DISTANCES if facts else ():
        items = []
        said = []
        for number in range(count):
            one = item_at(writer, facts, distance, number)
            if one is None:  # larger distances do not fit either
                return found
            items.append(one[0])
            said.append(one[1])
        found.append(Planted(distance, encode_items(items, writer.tokenizer), said))
    return found


def item_at(
    writer: Writer, facts: list[Fact], distance: int, number: int
) -> tuple[Item, int] | None:
    """An item and the place of its stated object; None where no draft fits."""
    for attempt in range(RETRIES if distance < writer.context else 0):
        rng = random.Random(f"recall:{distance}:{number}:{attempt}")
        drafted = draft(writer, rng.choice(facts), distance, rng)
        if drafted is not None:
            return drafted
    return None


def draft(writer: Writer, fact: Fact, distance: int, rng: random.Random) -> tuple[Item, int] | None:
    """One try; None where it does not fit. The distance is within an eighth (at least 2 tokens),
    and sentences before the fact move the answer to position 4K or later.
    """
    who = grammar.cast(rng)
    others = [object_ for object_ in writer.usable(fact) if object_ != fact.true_object]
    object_, contrary, *foils = rng.sample(others, NUM_CANDIDATES)
    frame = rng.choice(grammar.table().families[fact.family].frames)
    text = grammar.statement(frame, fact.subject, object_)
    world = rng.choice(grammar.table().worlds["bleed"])
    stated = grammar.state(who, rng, writer.split, text, world)
    place = stated.rindex(f" {object_}")
    lead = stated[:place]
    tail = stated[place + 1 + len(object_) :]
    between = fillers(writer, who, rng, distance - writer.length(f"{tail} {lead}") - 1, distance)
    if between is None:
        return None
    opening = who.say(rng.choice(grammar.OPENINGS), rng)
    asked = " ".join([stated, *between, lead])
    position = 1 + writer.length(opening) + writer.length(f" {asked}")
    before = [opening]
    while position < 4 * writer.num_kept:
        sentence = who.say(rng.choice(grammar.BODY), rng)
        position += writer.length(f" {sentence}")
        before.append(sentence)
    if position + 1 > writer.context:
        return None
    item = Item(
        prompt=" ".join([*before, asked]),
        answer=f" {object_}",
        contrary=f" {contrary}",
        foils=[f" {foil}" for foil in foils],
        tokens=distance,
    )
    return item, len(encode(writer.tokenizer, " ".join([*before, lead])))


def fillers(
    writer: Writer, who: Cast, rng: random.Random, room: int, distance: int
) -> list[str] | None:
    """Sentences of about `room` tokens together, or None."""
    slack = max(2, distance // 8)
    sentences: list[str] = []
    for _ in range(4 * distance):
        if abs(room) <= slack:
            return sentences
        sentence = who.say(rng.choice(grammar.BODY), rng)
        length = writer.length(f" {sentence}")
        if length <= room + slack:
            sentences.append(sentence)
            room -= length
    return None


@torch.no_grad()
def recall(model: Transformer, items: list[Planted], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For each distance the share of items right, and the hit rate over (layer, item).

    A hit: the query that predicts the answer selects the place of the stated object; None for a
    network without selection.
    """
    rows = []
    for distance, encoded, said in items:
        scores = score(model, encoded, tokenizer)
        right = sum(one.margin > 0 for one in scores) / len(scores)
        hits = hit_rates(model, encoded, said)
        hit = float(torch.tensor(hits).mean()) if hits else None
        rows.append({"distance": distance, "num": len(scores), "right": right, "hit": hit})
    return rows
