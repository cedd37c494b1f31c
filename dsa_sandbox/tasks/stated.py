"""Texts that state one arbitrary thing and need it again some tokens later.

The things are those of reading stories (data.reading): the name of a character, or the object of a
relation that no fact has, so that the text alone can say it. Nothing else of its kind is stated.
"""

import random
from collections.abc import Iterable
from typing import Literal, NamedTuple

from dsa_sandbox.data import grammar, reading
from dsa_sandbox.data.grammar import Cast
from dsa_sandbox.data.reading import Thing
from dsa_sandbox.data.tokens import encode
from dsa_sandbox.tasks.schema import Item
from dsa_sandbox.tasks.writing import RETRIES, Writer

NUM_CANDIDATES = 4
Kind = Literal["names", "relations"]
KINDS: tuple[Kind, ...] = ("names", "relations")


class Stated(NamedTuple):
    """An item that asks what its own text states, and the place of the stated word's token."""

    item: Item
    place: int


def stated(writer: Writer, kind: Kind, distance: int, number: int) -> Stated | None:
    """Text number `number`: what it states is asked `distance` tokens later; None: no room.

    The distance is within an eighth (at least 2 tokens); the answer stands at position 4K or later.
    Three more words that could have been stated are the wrong candidates. The same arguments give
    the same text.
    """
    for attempt in range(RETRIES if distance < writer.context else 0):
        rng = random.Random(f"stated:{kind}:{distance}:{number}:{attempt}")
        drawn = draw(writer, kind, rng)
        drafted = drawn and draft(writer, *drawn, distance, rng)
        if drafted:
            return drafted
    return None


def draw(writer: Writer, kind: Kind, rng: random.Random) -> tuple[Thing, list[str]] | None:
    """A thing and its wrong candidates, all single tokens; None where there are too few."""
    (thing,) = reading.characters(rng, 1) if kind == "names" else reading.facts(rng, 1)
    pool = reading.names() if thing.relation is None else thing.relation.objects
    words = usable(writer, pool)
    if len(words) < NUM_CANDIDATES:
        return None
    word, *wrong = rng.sample(words, NUM_CANDIDATES)
    return thing._replace(word=word), wrong


def usable(writer: Writer, words: Iterable[str]) -> list[str]:
    """The words that are one token."""
    return [word for word in words if writer.single(word)]


def draft(
    writer: Writer, thing: Thing, wrong: list[str], distance: int, rng: random.Random
) -> Stated | None:
    """One try; None where it does not fit."""
    who = grammar.cast(rng)
    lead, tail = thing.first(who, rng).rsplit(f" {thing.word}", 1)
    asked = thing.again(who, rng).rsplit(f" {thing.word}", 1)[0]
    between = fillers(writer, who, rng, distance - writer.length(f"{tail} {asked}") - 1, distance)
    if between is None:
        return None
    before = [who.say(rng.choice(grammar.OPENINGS), rng)]
    text = " ".join([f"{lead} {thing.word}{tail}", *between, asked])
    position = 1 + writer.length(before[0]) + writer.length(f" {text}")
    while position < 4 * writer.num_kept:
        before.append(who.say(rng.choice(grammar.BODY), rng))
        position += writer.length(f" {before[-1]}")
    if position + 1 > writer.context:
        return None
    contrary, *foils = [f" {word}" for word in wrong]
    item = Item(
        prompt=" ".join([*before, text]),
        answer=f" {thing.word}",
        contrary=contrary,
        foils=foils,
        tokens=distance,
    )
    return Stated(item, len(encode(writer.tokenizer, " ".join([*before, lead]))))


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
