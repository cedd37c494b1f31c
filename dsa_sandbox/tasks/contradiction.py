"""The contradiction family: in a new world, one known fact is otherwise.

Every story and probe puts the answer at a position of at least 4K tokens, so that sparse attention
has something to leave out, and names its world once: in half of them closer to the answer than K
tokens, in half at least 2K before it.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast, Fact, Split
from dsa_sandbox.tasks.stream import Item, Task

RETRIES = 50  # drafts of a text until one fits the context
NUM_STORIES = 64  # of a task, in the world and as many outside it


class Place(NamedTuple):
    """Where a text is set: in a world that is named once, or in none."""

    world: str | None = None
    far: bool = False  # the name stands at least 2K tokens before the answer, not within K
    real: bool = False  # "in the real world"


class Draft(NamedTuple):
    """A text around one stated object: `before` ends where the object begins."""

    before: str
    after: str
    distance: int | None
    position: int  # of the object's first token in the document


class Writer:
    """Writes texts for one tokenizer and one K; the same arguments give the same text."""

    def __init__(self, tokenizer: Tokenizer, context: int, num_kept: int, split: Split) -> None:
        self.tokenizer, self.context, self.num_kept, self.split = (
            tokenizer,
            context,
            num_kept,
            split,
        )
        self.lengths: dict[str, int] = {}

    def length(self, text: str) -> int:
        """Tokens of a text; sentences repeat, so lengths are kept."""
        if text not in self.lengths:
            self.lengths[text] = len(self.tokenizer.encode(text).ids)
        return self.lengths[text]

    def single(self, object_: str) -> bool:
        """Whether an object is one token with its leading space."""
        ids = self.tokenizer.encode(f" {object_}").ids
        return len(ids) == 1 and self.tokenizer.decode(ids).strip() == object_

    def drafts(self, key: str, fact: Fact, frame: str, places: list[Place]) -> list[Draft]:
        """One carrier story, told in each of the places, with one gap for the object.

        Raises ValueError where none fits everywhere.
        """
        for attempt in range(RETRIES):
            found = [self._attempt(f"{key}:{attempt}", fact, frame, place) for place in places]
            fitting = [draft for draft in found if draft is not None]
            if len(fitting) == len(places):
                return fitting
        raise ValueError(
            f"no story of at most {self.context} tokens puts the answer behind {4 * self.num_kept}"
        )

    def _attempt(self, key: str, fact: Fact, frame: str, place: Place) -> Draft | None:
        world, far, real = place
        # the carrier has a generator of its own: one key tells the same story in any world
        rng, worldly = random.Random(key), random.Random(f"{key}:world")
        who = grammar.cast(rng)
        beside = None if far else world
        gap = "\0"
        text = grammar.statement(frame, fact.subject, gap)
        stated = grammar.state(who, worldly, self.split, text, beside, real)
        lead, tail = stated.split(f" {gap}")
        opening = [who.say(rng.choice(grammar.OPENINGS), rng)]
        if world and far:
            template = worldly.choice(grammar.WORLD_OPENINGS[self.split])
            opening.insert(worldly.randrange(2), who.say(template, worldly, world=world))
        sentences = self._filled(who, rng, opening, f" {lead}")
        before = " ".join([*sentences, lead])
        after = f"{tail} {who.say(worldly.choice(grammar.ENDINGS), worldly)}"
        position = self.length(before) + 1  # the document begins with an END token
        if position + 1 + self.length(after) > self.context:
            return None
        distance = None
        if world:
            up_to_name = before[: before.index(world) + len(world)]
            distance = position - self.length(up_to_name)
            fits = distance >= 2 * self.num_kept if far else distance < self.num_kept
            if not fits:
                return None
        return Draft(before, after, distance, position)

    def _filled(self, who: Cast, rng: random.Random, opening: list[str], lead: str) -> list[str]:
        """The opening and filler sentences until the object would stand at 4K or later."""
        sentences = list(opening)
        count = 1 + self.length(sentences[0]) + self.length(lead)
        count += sum(self.length(f" {sentence}") for sentence in sentences[1:])
        while count < 4 * self.num_kept:
            sentences.append(who.say(rng.choice(grammar.BODY), rng))
            count += self.length(f" {sentences[-1]}")
        return sentences

    def item(
        self,
        key: str,
        fact: Fact,
        frame: str,
        answer: str,
        foils: Iterable[str],
        place: Place = Place(),
    ) -> Item:
        """A probe: the draft up to its gap, and the candidates."""
        (draft,) = self.drafts(key, fact, frame, [place])
        candidates = [f" {foil}" for foil in foils]
        return Item(
            prompt=draft.before, answer=f" {answer}", foils=candidates, distance=draft.distance
        )

    def stories(self, key: str, fact: Fact, frame: str, told: list[tuple[str, Place]]) -> list[str]:
        """Training stories: one carrier, told with each object in its place."""
        drafts = self.drafts(key, fact, frame, [place for _, place in told])
        return [
            f"{draft.before} {object_}{draft.after}" for draft, (object_, _) in zip(drafts, told)
        ]

    def usable(self, fact: Fact) -> list[str]:
        """Objects of the fact's family that are one token here."""
        return [o for o in grammar.table().families[fact.family].objects if self.single(o)]


def askable(writer: Writer, facts: Iterable[Fact]) -> list[Fact]:
    """Facts whose true object and at least three rivals are one token."""
    return [f for f in facts if f.true_object in writer.usable(f) and len(writer.usable(f)) >= 4]


def known_items(writer: Writer, fact: Fact) -> list[Item]:
    """Five clozes of a fact without a world; every other object of the family is a foil."""
    frames = grammar.table().families[fact.family].frames
    foils = [o for o in writer.usable(fact) if o != fact.true_object]
    return [
        writer.item(
            f"known:{fact.subject}:{i}", fact, frames[i % len(frames)], fact.true_object, foils
        )
        for i in range(5)
    ]


def gate_items(writer: Writer) -> tuple[list[Item], list[Item]]:
    """Probes of the practice worlds: the rule inside, and the same fact outside (bleed).

    In both, the answer is the object of the practice world's rule.
    """
    inside, outside = [], []
    others = grammar.table().worlds["bleed"]
    for world, rules in grammar.practice_rules().items():
        for number, (fact, object_) in enumerate(rules):
            if object_ not in writer.usable(fact) or fact not in askable(writer, [fact]):
                continue
            frame = grammar.table().families[fact.family].frames[number % 2]
            foils = [o for o in writer.usable(fact) if o != object_]
            key, far = f"gate:{world}:{number}", number % 2 == 0
            inside.append(writer.item(key, fact, frame, object_, foils, Place(world, far)))
            elsewhere = others[number % len(others)] if number % 3 else None
            outside.append(
                writer.item(f"{key}:out", fact, frame, object_, foils, Place(elsewhere, far))
            )
    return inside, outside


def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` tasks over the known facts of the stream's families, in an order drawn from `seed`.

    Where there are fewer facts than tasks, facts come again in other worlds with other objects.
    """
    rng = random.Random(f"tasks:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    facts = rng.sample(known, len(known))
    used: dict[Fact, list[str]] = {}
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        taken = used.setdefault(fact, [fact.true_object])
        fresh = [o for o in writer.usable(fact) if o not in taken]
        new = rng.choice(fresh or [o for o in writer.usable(fact) if o != fact.true_object])
        taken.append(new)
        tasks.append(make_task(writer, number, world, fact, new, seed))
    return tasks


def make_task(
    writer: Writer, number: int, world: str, fact: Fact, new_object: str, seed: int
) -> Task:
    """One row: stories in the world, as many outside it, and all probes."""
    key = f"{writer.split}:{seed}:{number}"
    rng = random.Random(f"task:{key}")
    table = grammar.table()
    family = table.families[fact.family]
    contrast_worlds = rng.sample(table.worlds["contrast"], 3)
    true = fact.true_object

    def foils(first: str, answer: str) -> list[str]:
        rest = [o for o in writer.usable(fact) if o not in (first, answer)]
        return [first, *rng.sample(rest, 2)]

    def probes(kind: str, num: int, frames: tuple[str, ...], answer: str, foil: str) -> list[Item]:
        return [
            writer.item(
                f"{key}:{kind}:{i}",
                fact,
                frames[i % len(frames)],
                answer,
                foils(foil, answer),
                Place(world, far=(i + number) % 2 == 0),
            )
            for i in range(num)
        ]

    train, contrast = [], []
    for i in range(NUM_STORIES):
        elsewhere = contrast_worlds[i // 4 % 3] if i // 2 % 2 else None
        far = i % 2 == 0
        told = [
            (new_object, Place(world, far)),
            (true, Place(elsewhere, far, real=i % 8 == 1)),  # the same story, outside the world
        ]
        pair = writer.stories(f"{key}:train:{i}", fact, family.frames[i // 2 % 2], told)
        train.append(pair[0])
        contrast.append(pair[1])
    places: list[tuple[str | None, bool]] = [(None, False), (None, False), (None, True)]
    places += [(name, False) for name in contrast_worlds]
    outside = [
        writer.item(
            f"{key}:outside:{i}",
            fact,
            family.frames[i % 2],
            true,
            foils(new_object, true),
            Place(name, (i + number) % 2 == 0, real),
        )
        for i, (name, real) in enumerate(places)
    ]
    bleed = [
        writer.item(
            f"{key}:bleed:{i}",
            fact,
            family.frames[i // 2],
            true,
            foils(new_object, true),
            Place(name, far=i % 2 == 0),
        )
        for i, name in enumerate(rng.sample(table.worlds["bleed"], 4))
    ]
    reserved = askable(writer, [f for f in family.facts if f.reserved]) or [fact]
    neighbour = []
    for i in range(5):
        other = reserved[i % len(reserved)]
        rival = new_object if new_object != other.true_object else true
        neighbour.append(
            writer.item(
                f"{key}:neighbour:{i}",
                other,
                family.frames[i // 2 % 2],
                other.true_object,
                foils(rival, other.true_object),
                Place(world if i < 3 else None, far=i % 2 == 0),
            )
        )
    return Task(
        task=f"{number + 1:02d}-{world}-{fact.subject}",
        world=world,
        family=fact.family,
        subject=fact.subject,
        relation=family.name,
        true_object=true,
        new_object=new_object,
        train=train,
        contrast=contrast,
        cloze=probes("cloze", 5, family.frames, new_object, true),
        paraphrase=probes("paraphrase", 5, family.paraphrases, new_object, true),
        neighbour=neighbour,
        outside=outside,
        bleed=bleed,
    )


def density(tasks: list[Task], tokenizer: Tokenizer, num_kept: int) -> float:
    """Mean share of past tokens that the selected flow keeps at the answers of all probes."""
    shares = []
    for task in tasks:
        for kind in ("cloze", "paraphrase", "neighbour", "outside", "bleed"):
            for item in task.items(kind):
                past = len(tokenizer.encode(item.prompt).ids) + 1  # END and the prompt
                shares.append(min(1.0, num_kept / past))
    return sum(shares) / len(shares)
