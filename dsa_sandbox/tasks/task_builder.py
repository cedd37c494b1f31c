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
from dsa_sandbox.tasks.schema import Frame, Item, Task, Where
from dsa_sandbox.tasks.writing import Attempt, Place, Writer, askable, sentences

NUM_STORIES = 64  # of a task, in the world and as many outside it
COUNTS = {  # items of a row by kind
    "stop_in": 16,
    "stop_out": 10,
    "validation_in": 16,
    "validation_out": 12,
    "transfer_in": 8,
    "transfer_out": 8,
    "neighbour": 5,
}
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
            stop_in=self.inside("stop_in"),
            stop_out=self.outside("stop_out"),
            validation_in=self.inside("validation_in"),
            validation_out=self.outside("validation_out"),
            transfer_in=self.inside("transfer_in"),
            transfer_out=self.unseen_worlds("transfer_out"),
            neighbour=self.neighbour(),
            undoes=undoes,
        )

    def telling(self, kind: str, number: int, sentence: str, place: Place) -> Attempt:
        """An attempt at text number `number` of a kind ("train", or of items) in a place."""
        return self.writer.telling(sentence, place)

    def wrong(self, contrary: str, answer: str, words: Sequence[str]) -> list[str]:
        """The contrary object and two more of the words as foils."""
        rest = [word for word in words if word not in (contrary, answer)]
        return [contrary, *self.rng.sample(rest, 2)]

    def stories(self) -> tuple[list[str], list[str]]:
        """Stories of the world, and for each the same story outside it.

        Of four stories with one sentence, two are told outside any world and two in other ones,
        each far and near: every sentence in every kind of place.
        """
        matter, train, contrast = self.matter, [], []
        elsewhere = self.other_worlds_of_stories()
        for i in range(NUM_STORIES):
            four, far = i // 4, i % 2 == 0
            real = i % 4 == 1 and four // 2 % 2 == 0
            inside, outside = (in_turn(said, four) for said in (matter.inside, matter.outside))
            within, without = Place(matter.world, far), Place(elsewhere.get(i), far, real)
            told = [
                (self.telling("train", i, inside, within), matter.new),
                (self.telling("train", i, outside, without), matter.true),
            ]
            pair = self.writer.stories(f"{self.key}:train:{i}", told)
            train.append(pair[0])
            contrast.append(pair[1])
        return train, contrast

    def other_worlds_of_stories(self) -> dict[int, str]:
        """The contrast world of every other pair of stories, by the story's number.

        All names take turns, first over the stories of one sentence that name a world far, then
        over those that name it near, then over those of the next sentence: so that no name goes
        with one sentence or one distance.
        """
        numbers = [i for i in range(NUM_STORIES) if i // 2 % 2]
        numbers.sort(key=lambda i: (i // 4 % len(self.matter.outside), i % 2))
        return {i: in_turn(self.contrast_worlds, turn) for turn, i in enumerate(numbers)}

    def inside(self, kind: str) -> list[Item]:
        """Probes in the world, near and far in turn; those of transfer_in in unseen frames."""
        matter = self.matter
        frame: Frame = "unseen" if kind == "transfer_in" else "trained"
        asked = matter.unseen if frame == "unseen" else matter.inside
        items = []
        for i in range(COUNTS[kind]):
            place = Place(matter.world, far=i % 2 == 1, where="this world")
            told = self.telling(kind, i, in_turn(asked, i // 2), place)
            wrong = self.wrong(matter.true, matter.new, matter.words)
            key = f"{self.key}:{kind}:{i}"
            items.append(self.writer.item(key, told, matter.new, wrong, place.where, frame))
        return items

    def outside(self, kind: str) -> list[Item]:
        """Probes in the places of contrast stories, with their shares.

        A half names a contrast world, near and far in turn, one in eight the real world. The
        sentence of the first items differs from row to row: no place always has the same one.
        """
        matter = self.matter
        drawn = random.Random(f"{self.key}:{kind}:worlds")
        names = drawn.sample(self.contrast_worlds, len(self.contrast_worlds))
        items = []
        for i in range(COUNTS[kind]):
            if i % 2:
                name = in_turn(names, i // 2)
                place = Place(name, far=i // 2 % 2 == 1, where="contrast world")
            elif i % 8 == 2:
                place = Place(real=True, where="real world")
            else:
                place = Place(where="no world")
            sentence = in_turn(matter.outside, i // 4 + self.number)
            items.append(self.true_item(kind, i, sentence, place))
        return items

    def unseen_worlds(self, kind: str) -> list[Item]:
        """Probes in worlds that no training story of the stream names, near and far in turn."""
        names = grammar.table().worlds["bleed"]
        names = tuple(self.rng.sample(names, len(names)))
        items = []
        for i in range(COUNTS[kind]):
            place = Place(in_turn(names, i), far=i % 2 == 1, where="unseen world")
            sentence = in_turn(self.matter.outside, i // 2)
            items.append(self.true_item(kind, i, sentence, place))
        return items

    def true_item(self, kind: str, number: int, sentence: str, place: Place) -> Item:
        """A probe outside the world: the true object is right, the new one its contrary."""
        matter = self.matter
        told = self.telling(kind, number, sentence, place)
        wrong = self.wrong(matter.new, matter.true, matter.words)
        key = f"{self.key}:{kind}:{number}"
        return self.writer.item(key, told, matter.true, wrong, place.where, "trained")

    def neighbour(self) -> list[Item]:
        """Probes of the reserved facts of the relation, in the world (3) and without one (2)."""
        matter = self.matter
        family = grammar.table().families[matter.fact.family]
        objects = self.writer.usable(matter.fact)
        others = [f for f in family.facts if f.subject != matter.subject and f != matter.fact]
        asked_of = askable(self.writer, [f for f in others if f.reserved])
        asked_of = asked_of or askable(self.writer, others) or [matter.fact]
        items = []
        for i in range(COUNTS["neighbour"]):
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
            items.append(self.writer.item(name, told, fact.true_object, wrong, where, "trained"))
        return items
