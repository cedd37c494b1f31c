"""The roleplay family: a game master states a house rule to be recalled later.

"A wise woman said that in Aldo the lemon is blue. Lily knew that in Opal the lemon is green. ...
In Aldo the lemon is": near or far is the stated rule (its object, not the world's name, which the
question itself holds), and `tokens` counts from there to the answer. Far rules stand 32, 64, 128,
256 or 400 tokens before it, near ones 16, 32 or K - 1 (or a token or two nearer, where no filler is
so short), as K and the context allow. Two other characters state rules of other worlds: one about
the same subject, whose object is a foil, one about another subject.

* stop and validation items: the master states the task's rule, as training stories do.
* transfer_in: the master states another rule than the trained one; the answer is what was stated,
  and its contrary is the trained object: context must win over weights. Frames are the trained
  ones.
* outside: the same rules are stated, but the fact is asked of other worlds, where it is true; in
  transfer_out the master states another rule, and no story names the world that is asked about.
* neighbours are told without rules, as in the contradiction family.

A context too short for a far rule, or a K too small for a near one, leaves those items out.
"""

import random
from functools import partial
from typing import NamedTuple

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast, Fact, Split
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.task_builder import COUNTS, Matter, Row, contrary, in_turn
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


class Distances(NamedTuple):
    """Tokens from the stated rule to the answer: near ones (< K) and far ones (>= 2K)."""

    near: list[int]
    far: list[int]


def distances(context: int, num_kept: int) -> Distances:
    """The distances that fit a context of this many tokens; ValueError where none does."""
    near = sorted({d for d in DISTANCES if d < num_kept} | {num_kept - 1})
    far = [d for d in DISTANCES if d >= 2 * num_kept]
    fitting = Distances(*([d for d in some if d + ROOM <= context] for some in (near, far)))
    if not any(fitting):
        raise ValueError(f"a context of {context} tokens has no room for a rule before the answer")
    return fitting


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
        self.distances = distances(writer.context, writer.num_kept)
        half = len(self.contrast_worlds) // 2
        self.rule_worlds = self.contrast_worlds[half:]  # characters state rules of these
        self.contrast_worlds = self.contrast_worlds[:half]  # items ask for facts in these

    def telling(self, kind: str, number: int, sentence: str, place: Place) -> Attempt:
        """With stated rules; texts of one kind and number state the same rules in every place."""
        held, rival = self.stated(kind, number)
        return self.ruled(kind, number, sentence, place, held, rival)

    def stated(self, kind: str, number: int) -> tuple[str, str]:
        """What the subject has by the master's rule, and what it has in another world."""
        rng, held = random.Random(f"{self.key}:{kind}:{number}:stated"), self.matter.new
        if kind.startswith("transfer"):
            held = rng.choice(self.others_than(held))
        return held, rng.choice(self.others_than(held))

    def others_than(self, held: str) -> list[str]:
        """Objects that are neither stated by the master, nor true, nor trained."""
        apart = (held, self.matter.new, self.matter.true)
        return [word for word in self.matter.words if word not in apart]

    def room(self, sentence: str, far: bool) -> list[int]:
        """The near or far distances at which a rule may stand before the question."""
        lead = shortest_lead(sentence, self.matter.world, self.writer)
        return [one for one in (self.distances.far if far else self.distances.near) if one > lead]

    def ruled(
        self, kind: str, number: int, sentence: str, place: Place, held: str, rival: str
    ) -> Attempt:
        """The master states that the subject has `held`, another that elsewhere it has `rival`."""
        rng = random.Random(f"{self.key}:{kind}:{number}:rules")
        matter, split = self.matter, self.writer.split
        family = grammar.table().families[matter.fact.family]
        other = rng.choice([f for f in family.facts if f != matter.fact and not f.reserved])
        object_ = rng.choice([o for o in matter.words if o not in (held, other.true_object)])
        apart = grammar.statement(in_turn(family.frames, number), other.subject, object_)
        others = zip(
            rng.sample(OTHERS[split], 2),
            rng.sample(self.rule_worlds, 2),
            (sentence.format(object=rival), apart),
        )
        room = self.room(sentence, place.far) or self.room(sentence, not place.far)
        turn = number // 2  # near and far take turns
        rules = Rules(
            matter.world,
            in_world(MASTER[split], matter.world, sentence.format(object=held)),
            [in_world(template, world, statement) for template, world, statement in others],
            # the order shifts by one in each round, so that no distance always meets one frame
            in_turn(room, turn + turn // len(room)),
        )
        return partial(told, writer=self.writer, sentence=sentence, place=place, rules=rules)

    def inside(self, kind: str) -> list[Item]:
        """Probes in the world, the rule near and far in turn as far as there is room for it."""
        matter, items = self.matter, []
        for i in range(COUNTS[kind]):
            sentence = in_turn(matter.inside, i // 2)
            place = Place(matter.world, far=i % 2 == 1, where="this world")
            if not self.room(sentence, place.far):
                continue
            held, rival = self.stated(kind, i)
            if held == matter.new:
                rest = [word for word in self.others_than(held) if word != rival]
                wrong = [matter.true, rival, *self.rng.sample(rest, 1)]
            else:
                wrong = [matter.new, matter.true, rival]
            attempt = self.ruled(kind, i, sentence, place, held, rival)
            key = f"{self.key}:{kind}:{i}"
            items.append(self.writer.item(key, attempt, held, wrong, place.where, "trained"))
        return items


def shortest_lead(sentence: str, world: str, writer: Writer) -> int:
    """Fewest tokens from the end of a rule to the gap of a question about a world."""
    leads = []
    for template in grammar.WORLD_INLINE[writer.split]:
        asked = in_world(template, world, sentence.format(object=GAP))
        leads.append(writer.length(f". {asked.split(f' {GAP}')[0]}"))
    return min(leads)


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
    near, spare = writer.band(rules.distance) == "near", 0
    if near and room < SHORTEST:  # no filler is so short: the rule stands a little nearer
        spare = room
    filler = filled(writer, who, rng, room - spare)
    if filler is None:
        return None
    distance = rules.distance - spare
    between += filler
    rng.shuffle(between)
    count = writer.length(" ".join([*before, rules.master])) - 1 + distance
    while count < 4 * writer.num_kept:
        before.append(who.say(rng.choice(grammar.BODY), rng))
        count += writer.length(f" {before[-1]}")
    prompt = " ".join([*before, rules.master, *between, lead])
    after = f"{tail} {who.say(worldly.choice(grammar.ENDINGS), worldly)}"
    position = writer.length(prompt) + 1
    exact = writer.since(prompt, rules.master.removesuffix(".")) == distance
    if not exact or position + 1 + writer.length(after) > writer.context:
        return None
    if place.world != rules.world:  # the rule does not hold there: what counts is the name
        named = writer.since(prompt, place.world) if place.world else None
        return Draft(prompt, after, named, position)
    if writer.band(distance) != writer.band(rules.distance):
        return None
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
