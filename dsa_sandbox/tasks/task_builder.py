"""Writes a task's row from its topic: stories in the world, as many outside it, and all items.

A family is a function `(writer, known, count, seed) -> tasks` that is registered under a name. Of
`count` tasks it decides what each is about (a `Matter`); a `Row` writes it. `known` are the facts
that every base knows and that may be tasks, at least five.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.writing import Attempt, Place, Where, Writer, askable, sentences

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
        names = grammar.table().worlds["contrast"]
        self.contrast_worlds = self.rng.sample(names, len(names))

    def task(self, undoes: str | None = None) -> Task:
        """The row."""
        matter = self.matter
        train, contrast = self.stories()
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
            stop_in=self.inside("stop_in", 16),
            stop_out=self.outside("stop_out", 10),
            validation_in=self.inside("validation_in", 16),
            validation_out=self.outside("validation_out", 12),
            transfer_in=self.inside("transfer_in", 8),
            transfer_out=self.unseen_worlds(8),
            neighbour=self.neighbour(),
            undoes=undoes,
        )

    def telling(self, key: str, number: int, sentence: str, place: Place) -> Attempt:
        """An attempt at text number `number` of a kind, with the random key `key`, in a place."""
        return self.writer.telling(sentence, place)

    def wrong(self, contrary: str, answer: str, words: Sequence[str]) -> list[str]:
        """The contrary object and two more of the words as foils."""
        rest = [word for word in words if word not in (contrary, answer)]
        return [contrary, *self.rng.sample(rest, 2)]

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

    def inside(self, kind: str, count: int) -> list[Item]:
        """Probes in the world, near and far in turn; those of transfer_in in unseen frames."""
        matter = self.matter
        frame: Literal["trained", "unseen"] = "unseen" if kind == "transfer_in" else "trained"
        asked = matter.unseen if frame == "unseen" else matter.inside
        items = []
        for i in range(count):
            place = Place(matter.world, far=i % 2 == 1, where="this world")
            key = f"{self.key}:{kind}:{i}"
            told = self.telling(key, i, in_turn(asked, i // 2), place)
            wrong = self.wrong(matter.true, matter.new, matter.words)
            items.append(self.writer.item(key, told, matter.new, wrong, place, frame))
        return items

    def outside(self, kind: str, count: int) -> list[Item]:
        """Probes where contrast stories are told, and in their shares: other worlds, none, real."""
        matter = self.matter
        items = []
        for i in range(count):
            far = i // 2 % 2 == 1
            if i % 2:
                name = in_turn(self.contrast_worlds, i // 2)
                place = Place(name, far, where="contrast world")
            elif i % 6 == 2:
                place = Place(real=True, where="real world")
            else:
                place = Place(where="no world")
            key = f"{self.key}:{kind}:{i}"
            told = self.telling(key, i, in_turn(matter.outside, i // 2), place)
            wrong = self.wrong(matter.new, matter.true, matter.words)
            items.append(self.writer.item(key, told, matter.true, wrong, place, "trained"))
        return items

    def unseen_worlds(self, count: int) -> list[Item]:
        """Probes in worlds that no training story of the stream names."""
        matter = self.matter
        names = grammar.table().worlds["bleed"]
        names = tuple(self.rng.sample(names, len(names)))
        items = []
        for i in range(count):
            place = Place(in_turn(names, i), far=i % 2 == 1, where="unseen world")
            told = self.writer.telling(in_turn(matter.outside, i // 2), place)
            wrong = self.wrong(matter.new, matter.true, matter.words)
            key = f"{self.key}:transfer_out:{i}"
            items.append(self.writer.item(key, told, matter.true, wrong, place, "trained"))
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
            where: Where = "this world" if inside else "no world"
            place = Place(matter.world if inside else None, far=i % 2 == 0, where=where)
            told = self.writer.telling(asked, place)
            wrong = self.wrong(rival, fact.true_object, objects)
            name = f"{self.key}:neighbour:{i}"
            items.append(self.writer.item(name, told, fact.true_object, wrong, place, "trained"))
        return items
