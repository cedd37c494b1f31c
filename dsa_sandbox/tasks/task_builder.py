"""Writes a task's row from its topic: stories in the world, as many outside it, and all items.

A family is a function `(writer, known, count, seed) -> tasks` that is registered under a name. Of
`count` tasks it decides what each is about (a `Matter`); a `Row` writes it. `known` are the facts
that every base knows and that may be tasks, at least five.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.writing import Attempt, Place, Writer, askable, sentences

NUM_STORIES = 64  # of a task, in the world and as many outside it
T = TypeVar("T")


class Matter(NamedTuple):
    """The topic of a task: the statement in its world and the statement everywhere else."""

    world: str
    fact: Fact  # holds outside the world; its family gives the relation and the neighbours
    subject: str  # in the task's name
    true: str  # fills the gap outside the world
    new: str  # fills it in the world
    inside: tuple[str, ...]  # sentences of the world, with a gap
    unseen: tuple[str, ...]  # sentences that hold there too, for probes only
    outside: tuple[str, ...]
    words: list[str]  # of which foils are drawn


def contrary(writer: Writer, world: str, fact: Fact, new: str) -> Matter:
    """In the world, the fact's subject has the object `new`."""
    family = grammar.table().families[fact.family]
    said, unseen = (sentences(f, fact.subject) for f in (family.frames, family.paraphrases))
    words = writer.usable(fact)
    return Matter(world, fact, fact.subject, fact.true_object, new, said, unseen, said, words)


def in_turn(things: Sequence[T], number: int) -> T:
    """The things one after another, again and again."""
    return things[number % len(things)]


class Row:
    """Writes one row; random draws depend on the stream's split and seed and the row's number."""

    def __init__(self, writer: Writer, number: int, seed: int, matter: Matter) -> None:
        self.writer, self.number, self.matter = writer, number, matter
        self.key = f"{writer.split}:{seed}:{number}"
        self.rng = random.Random(f"task:{self.key}")
        self.contrast_worlds = self.rng.sample(grammar.table().worlds["contrast"], 3)

    def task(self, undoes: str | None = None) -> Task:
        """The row."""
        matter = self.matter
        train, contrast = self.stories()
        outside, bleed, neighbour = self.outside(), self.bleed(), self.neighbour()
        return Task(
            task=f"{self.number + 1:02d}-{matter.world}-{matter.subject}",
            world=matter.world,
            family=matter.fact.family,
            subject=matter.subject,
            relation=matter.fact.family,
            true_object=matter.true,
            new_object=matter.new,
            train=train,
            contrast=contrast,
            cloze=self.inside("cloze", matter.inside),
            paraphrase=self.inside("paraphrase", matter.unseen),
            neighbour=neighbour,
            outside=outside,
            bleed=bleed,
            undoes=undoes,
        )

    def telling(self, key: str, number: int, sentence: str, place: Place) -> Attempt:
        """An attempt at text number `number` of a kind, with the random key `key`, in a place."""
        return self.writer.telling(sentence, place)

    def foils(self, first: str, answer: str, words: Sequence[str]) -> list[str]:
        """`first` and two more of the words."""
        rest = [word for word in words if word not in (first, answer)]
        return [first, *self.rng.sample(rest, 2)]

    def stories(self) -> tuple[list[str], list[str]]:
        """Stories of the world, and for each the same story outside it.

        Of four stories with one sentence, two are told outside any world and two in another one,
        each far and near: every sentence in every kind of place.
        """
        matter, train, contrast = self.matter, [], []
        for i in range(NUM_STORIES):
            four, far = i // 4, i % 2 == 0
            elsewhere = in_turn(self.contrast_worlds, four + four // 3) if i // 2 % 2 else None
            real = i % 4 == 1 and four // 2 % 2 == 0
            inside, outside = (in_turn(said, four) for said in (matter.inside, matter.outside))
            within, without = Place(matter.world, far), Place(elsewhere, far, real)
            key = f"{self.key}:train:{i}"
            told = [
                (self.telling(key, i, inside, within), matter.new),
                (self.telling(key, i, outside, without), matter.true),
            ]
            pair = self.writer.stories(key, told)
            train.append(pair[0])
            contrast.append(pair[1])
        return train, contrast

    def inside(self, kind: str, asked: Sequence[str]) -> list[Item]:
        """Five probes in the world."""
        matter = self.matter
        items = []
        for i in range(5):
            place = Place(matter.world, far=(i + self.number) % 2 == 0)
            key = f"{self.key}:{kind}:{i}"
            told = self.telling(key, i + self.number, in_turn(asked, i), place)
            foils = self.foils(matter.true, matter.new, matter.words)
            items.append(self.writer.item(key, told, matter.new, foils))
        return items

    def outside(self) -> list[Item]:
        """Probes without a world (2), in the real one (1) and in those of the contrast stories."""
        matter = self.matter
        places: list[tuple[str | None, bool]] = [(None, False), (None, False), (None, True)]
        places += [(name, False) for name in self.contrast_worlds]
        items = []
        for i, (name, real) in enumerate(places):
            place = Place(name, (i + self.number) % 2 == 0, real)
            key = f"{self.key}:outside:{i}"
            told = self.telling(key, i + self.number, in_turn(matter.outside, i), place)
            foils = self.foils(matter.new, matter.true, matter.words)
            items.append(self.writer.item(key, told, matter.true, foils))
        return items

    def bleed(self) -> list[Item]:
        """Probes in four worlds that no training story names."""
        matter = self.matter
        items = []
        for i, name in enumerate(self.rng.sample(grammar.table().worlds["bleed"], 4)):
            place = Place(name, far=i % 2 == 0)
            told = self.writer.telling(in_turn(matter.outside, i // 2), place)
            foils = self.foils(matter.new, matter.true, matter.words)
            items.append(self.writer.item(f"{self.key}:bleed:{i}", told, matter.true, foils))
        return items

    def neighbour(self) -> list[Item]:
        """Probes of the reserved facts of the relation, in the world (3) and without one (2)."""
        matter = self.matter
        family = grammar.table().families[matter.fact.family]
        objects = self.writer.usable(matter.fact)
        others = [f for f in family.facts if f.subject != matter.subject and f != matter.fact]
        asked_of = askable(self.writer, [f for f in others if f.reserved])
        asked_of = asked_of or askable(self.writer, others) or [matter.fact]
        items = []
        for i in range(5):
            fact = in_turn(asked_of, i)
            rivals = [o for o in (matter.new, matter.true, *objects) if o in objects]
            rival = next(o for o in rivals if o != fact.true_object)
            asked = in_turn(sentences(family.frames, fact.subject), i // 2)
            inside = i < 3 and fact != matter.fact
            place = Place(matter.world if inside else None, far=i % 2 == 0)
            told = self.writer.telling(asked, place)
            foils = self.foils(rival, fact.true_object, objects)
            name = f"{self.key}:neighbour:{i}"
            items.append(self.writer.item(name, told, fact.true_object, foils))
        return items
