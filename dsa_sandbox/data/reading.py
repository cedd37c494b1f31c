"""Stories that reward reading: each states something arbitrary and needs it again later.

Half of them introduce two or three characters ("the dragon Momo") and name them at every mention.
The others state one to three things of relations that the table of facts lacks ("the key is under
the rug"), never two of one relation. What a story states holds in that story alone, so no weight
can store it. No fact of the table and no world occurs in these stories.

A story is a pure function of (seed, index).
"""

import random
from functools import cache
from typing import NamedTuple

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast

NEAREST = 6  # tokens from one mention to the next, at least
LATEST = 36  # tokens after which the next sentence has to be a mention
MENTION_SHARE = 0.9  # probability that a sentence mentions a statement again, where one is due

INTRODUCTIONS = (
    "In the {place} lived {one}.",
    "One day {one} came to the {place}.",
    "Near the {place} they met {one}.",
)
MENTIONS = (
    "{One} came to the {place}.",
    "{One} was {feeling}.",
    "{One} lost a {thing}.",
    "{A} played with {one}.",
    "{B} gave a {thing} to {one}.",
    "They saw {one}.",
    "{A} and {one} laughed.",
    "{One} sat down.",
    "{B} asked {one} to play.",
    "A {animal} ran to {one}.",
    '"I am {feeling}," said {one}.',
)
TELLINGS = (
    "{Statement}.",
    "And {statement}.",
    "So {statement}.",
    '"{Statement}," said {B}.',
    "{A} said that {statement}.",
    "They knew that {statement}.",
)


class Relation(NamedTuple):
    """A relation of reading stories: any subject may have any object, which ends the sentence."""

    name: str
    frames: tuple[str, ...]
    subjects: tuple[str, ...]
    objects: tuple[str, ...]


class Thing(NamedTuple):
    """A statement of one story: `key` has the name or object `word`, in this story alone."""

    key: str  # a character's kind, or a relation's subject
    word: str
    relation: Relation | None = None  # None for a character

    def first(self, who: Cast, rng: random.Random) -> str:
        """The sentence that states it."""
        return self.sentence(who, rng, INTRODUCTIONS)

    def again(self, who: Cast, rng: random.Random) -> str:
        """A sentence that reads it back."""
        return self.sentence(who, rng, MENTIONS)

    def sentence(self, who: Cast, rng: random.Random, templates: tuple[str, ...]) -> str:
        """A template about the character, or the relation's statement in any of its frames."""
        if self.relation is None:
            one = f"the {self.key} {self.word}"
            return who.say(rng.choice(templates), rng, one=one, One=capital(one))
        frame = rng.choice(self.relation.frames)
        return told(who, rng, grammar.statement(frame, self.key, self.word))


def told(who: Cast, rng: random.Random, text: str) -> str:
    """A sentence that states `text`."""
    return who.say(rng.choice(TELLINGS), rng, statement=text, Statement=capital(text))


def capital(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[0].upper() + text[1:]


@cache
def relations() -> tuple[Relation, ...]:
    """The relations of reading stories; none of them is in the table of facts."""
    return tuple(
        Relation(name, tuple(row["frames"]), tuple(row["subjects"]), tuple(row["objects"]))
        for name, row in grammar.entries()["relations"].items()
    )


def kinds() -> list[str]:
    """Kinds of characters."""
    return list(grammar.entries()["characters"]["kinds"])


def names() -> list[str]:
    """Names of characters."""
    return list(grammar.entries()["characters"]["names"])


def read_words() -> list[str]:
    """The words that stories read back: names of characters, and objects of their relations."""
    return [*names(), *(object_ for one in relations() for object_ in one.objects)]


def characters(rng: random.Random, count: int) -> list[Thing]:
    """Characters of different kinds and names."""
    return [Thing(*pair) for pair in zip(rng.sample(kinds(), count), rng.sample(names(), count))]


def facts(rng: random.Random, count: int) -> list[Thing]:
    """Things of different relations."""
    return [
        Thing(rng.choice(one.subjects), rng.choice(one.objects), one)
        for one in rng.sample(relations(), count)
    ]


def is_due(seed: int, index: int, share: float) -> bool:
    """Draw whether story number `index` is a reading story, with probability `share`."""
    return random.Random(f"reads:{seed}:{index}").random() < share


def story(seed: int, index: int, max_words: int = 126) -> str:
    """Reading story number `index`, of at most `max_words` words and not much less."""
    rng = random.Random(f"reading:{seed}:{index}")
    who = grammar.cast(rng)
    of_names = rng.random() < 0.5
    things = characters(rng, rng.choice((2, 3))) if of_names else facts(rng, rng.choice((1, 2, 3)))
    ending = who.say(rng.choice(grammar.ENDINGS), rng)
    sentences = [who.say(rng.choice(grammar.OPENINGS), rng)]
    count = grammar.num_words(sentences[0])
    room = max_words - grammar.num_words(ending)
    mentioned: dict[Thing, int] = {}  # tokens before the end of its last mention
    while True:
        thing = next_thing(rng, things, {one: count - at for one, at in mentioned.items()})
        if thing is None:
            text = who.say(rng.choice(grammar.BODY), rng)
        elif thing in mentioned:
            text = thing.again(who, rng)
        else:
            text = thing.first(who, rng)
        length = grammar.num_words(f" {text}")
        if count + length > room:
            return " ".join([*sentences, ending])
        if thing is not None:
            mentioned[thing] = count + grammar.num_words(f" {text}".split(f" {thing.word}")[0])
        sentences.append(text)
        count += length


def next_thing(rng: random.Random, things: list[Thing], since: dict[Thing, int]) -> Thing | None:
    """The statement for the next sentence, or None for filler; `since`: tokens since mentions."""
    late = [one for one in things if since.get(one, 0) >= LATEST]
    if late:
        return max(late, key=since.__getitem__)
    waiting = [one for one in things if one not in since or since[one] >= NEAREST]
    return rng.choice(waiting) if waiting and rng.random() < MENTION_SHARE else None


def all_words() -> list[str]:
    """Sentences that hold every word of reading stories in every place a story can put it."""
    texts = []
    for one in relations():
        for frame in one.frames:
            for subject in one.subjects:
                text = grammar.statement(frame, subject, one.objects[0])
                texts.append(f"{capital(text)} {text}")
        texts.append(" " + " ".join(one.objects))
    return [*texts, " " + " ".join([*kinds(), *names()])]
