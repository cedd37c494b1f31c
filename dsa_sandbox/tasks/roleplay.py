"""The roleplay family: a game master states a house rule to be recalled later.

"A wise woman said that in Aldo the lemon is blue. Lily knew that in Opal the lemon is green. ...
In Aldo the lemon is": the rule stands exactly 16, 32, 64, 128, 256 or 400 tokens before the answer,
as far as the context allows, and `distance` of cloze and paraphrase counts from the rule's object,
so that recall by distance can be read off the records. Two other characters state rules of other
worlds: one about the same subject, whose object is a foil, one about another subject.

* `cloze`: the master states the rule of the task, which training stories state too.
* `paraphrase`: the master states another rule than the trained one; the answer is what was stated,
  and the trained object is a foil: context must win over weights. Frames are the trained ones.
* contrast stories and `outside`: the same rules are stated, but the fact is asked of other worlds,
  where it is true.
* `bleed` and `neighbour` are told without rules, as in the contradiction family.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast, Fact, Split
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.task_builder import Matter, Row, contrary, in_turn
from dsa_sandbox.tasks.writing import GAP, Attempt, Draft, Place, Writer

DISTANCES = (16, 32, 64, 128, 256, 400)  # from the stated rule to the answer, tokens
ROOM = 64  # tokens of the context that a story takes beside the distance
SHORTEST = 3  # tokens of a filler sentence
SHORT = (  # with the grammar's filler they add up to any number of tokens
    "{A} smiled.",
    "{B} laughed.",
    "They sat down.",
    "{B} was {feeling}.",
    "{A} and {B} smiled.",
)
MASTER: dict[Split, str] = {
    "test": "A wise woman said that in {world} {statement}.",
    "development": "An old man said that over in {world} {statement}.",
}
OTHERS: dict[Split, tuple[str, str]] = {
    "test": (
        "{A} knew that in {world} {statement}.",
        "{B} knew that in {world} {statement}.",
    ),
    "development": (
        "{A} had heard that over in {world} {statement}.",
        "{B} had heard that over in {world} {statement}.",
    ),
}


@families.register("roleplay")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` house rules over the known facts, each in a separate world.

    Raises ValueError where the context has no room for the shortest distance.
    """
    rng = random.Random(f"roleplay:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    facts = rng.sample(known, len(known))
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        new = rng.choice([o for o in writer.usable(fact) if o != fact.true_object])
        tasks.append(Game(writer, number, seed, contrary(writer, world, fact, new)).task())
    return tasks


def distances(context: int) -> list[int]:
    """The distances that fit a context of this many tokens; ValueError where none does."""
    found = [distance for distance in DISTANCES if distance + ROOM <= context]
    if not found:
        raise ValueError(
            f"a context of {context} tokens has no room for a rule {DISTANCES[0]} tokens before "
            "the answer"
        )
    return found


class Rules(NamedTuple):
    """The rules that the characters of a game state before one of them is asked for."""

    world: str  # whose rule the master states
    master: str
    others: list[str]  # of other characters, whose slots are open
    distance: int  # from the master's object to the answer, tokens


class Game(Row):
    """A row whose stories state rules."""

    def __init__(self, writer: Writer, number: int, seed: int, matter: Matter) -> None:
        super().__init__(writer, number, seed, matter)
        self.distances = distances(writer.context)
        worlds = grammar.table().worlds["contrast"]
        self.other_worlds = [name for name in worlds if name not in self.contrast_worlds]

    def telling(self, key: str, number: int, sentence: str, place: Place) -> Attempt:
        """With the rule of the task; one key gives the same rules in every place."""
        rng, held = random.Random(f"{key}:rules"), self.matter.new
        return self.ruled(rng, number, sentence, place, held, rng.choice(self.others_than(held)))

    def others_than(self, held: str) -> list[str]:
        """Objects that are neither stated by the master, nor true, nor trained."""
        apart = (held, self.matter.new, self.matter.true)
        return [word for word in self.matter.words if word not in apart]

    def ruled(
        self,
        rng: random.Random,
        number: int,
        sentence: str,
        place: Place,
        held: str,
        rival: str,
    ) -> Attempt:
        """The master states that the subject has `held`, another that elsewhere it has `rival`."""
        matter, split = self.matter, self.writer.split
        family = grammar.table().families[matter.fact.family]
        other = rng.choice([f for f in family.facts if f != matter.fact and not f.reserved])
        object_ = rng.choice([o for o in matter.words if o not in (held, other.true_object)])
        apart = grammar.statement(in_turn(family.frames, number), other.subject, object_)
        others = zip(
            rng.sample(OTHERS[split], 2),
            rng.sample(self.other_worlds, 2),
            (sentence.format(object=rival), apart),
        )
        rules = Rules(
            matter.world,
            in_world(MASTER[split], matter.world, sentence.format(object=held)),
            [in_world(template, world, statement) for template, world, statement in others],
            # the order shifts by one in each round, so that no distance always meets one frame
            in_turn(self.distances, number + number // len(self.distances)),
        )
        return partial(told, writer=self.writer, sentence=sentence, place=place, rules=rules)

    def inside(self, kind: str, asked: Sequence[str]) -> list[Item]:
        """Five probes in the world; in paraphrases another rule than the trained one is stated."""
        matter = self.matter
        items = []
        for i in range(5):
            key = f"{self.key}:{kind}:{i}"
            rng, held = random.Random(f"{key}:rules"), matter.new
            if kind == "paraphrase":
                held = rng.choice(self.others_than(held))
            rival, *rest = rng.sample(rivals := self.others_than(held), len(rivals))
            foils = [matter.true, rival, rest[0] if held == matter.new else matter.new]
            sentence, place = in_turn(matter.inside, i), Place(matter.world)
            attempt = self.ruled(rng, 5 * self.number + i, sentence, place, held, rival)
            items.append(self.writer.item(key, attempt, held, foils))
        return items


def in_world(template: str, world: str, statement: str) -> str:
    """The template with these two filled in; slots for characters stay open."""
    return template.replace("{world}", world).replace("{statement}", statement)


def told(key: str, writer: Writer, sentence: str, place: Place, rules: Rules) -> Draft | None:
    """A story in which the rules are stated and then one is needed; None where it does not fit."""
    rng, worldly = random.Random(key), random.Random(f"{key}:world")
    who = grammar.cast(rng)
    text = sentence.format(object=GAP)
    asked = grammar.state(who, worldly, writer.split, text, place.world, place.real)
    lead, tail = asked.split(f" {GAP}")
    before, between = [who.say(rng.choice(grammar.OPENINGS), rng)], []
    room = rules.distance - 1 - writer.length(f". {lead}")  # for what stands between
    for template in rules.others:
        other = who.say(template, rng)
        length = writer.length(f" {other}")
        if room - length >= SHORTEST:
            between.append(other)
            room -= length
        else:
            before.append(other)
    filler = filled(writer, who, rng, room)
    if filler is None:
        return None
    between += filler
    rng.shuffle(between)
    count = writer.length(" ".join([*before, rules.master])) - 1 + rules.distance
    while count < 4 * writer.num_kept:
        before.append(who.say(rng.choice(grammar.BODY), rng))
        count += writer.length(f" {before[-1]}")
    prompt = " ".join([*before, rules.master, *between, lead])
    after = f"{tail} {who.say(worldly.choice(grammar.ENDINGS), worldly)}"
    position = writer.length(prompt) + 1
    exact = writer.since(prompt, rules.master.removesuffix(".")) == rules.distance
    if not exact or position + 1 + writer.length(after) > writer.context:
        return None
    distance = writer.since(prompt, place.world) if place.world else None
    if place.world == rules.world:
        distance = rules.distance
    return Draft(prompt, after, distance, position)


def filled(writer: Writer, who: Cast, rng: random.Random, room: int) -> list[str] | None:
    """Filler sentences of exactly `room` tokens; None where none were found."""
    found: list[str] = []
    for _ in range(200):
        if room == 0:
            return found
        sentence = who.say(rng.choice(grammar.BODY + SHORT), rng)
        left = room - writer.length(f" {sentence}")
        if left == 0 or left >= SHORTEST:
            found.append(sentence)
            room = left
    return None
