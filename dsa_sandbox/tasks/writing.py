"""Texts around one statement with a gap: carrier stories, probes, and what bases are asked.

Every text puts the answer at a position of at least 4K tokens, so that sparse attention has
something to leave out. A world is named once: closer to the answer than K tokens, or at least 2K
before it. A sentence is text with `{object}` for its gap.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, cycle
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Cast, Fact, Split
from dsa_sandbox.data.spelling import common_length, text_after
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks.schema import KINDS, Frame, Item, Task, Where, mentions

RETRIES = 50  # drafts of a text until one fits the context
GAP = "\0"
START = "It was"  # what sentences, and words with their space, are encoded behind


class Place(NamedTuple):
    """Where a text takes place: in a world that it names once, or in no world."""

    world: str | None = None
    far: bool = False  # the name is at least 2K tokens before the answer; else fewer than K
    real: bool = False  # "in the real world"
    where: Where | None = None  # what the place is to the task


class Draft(NamedTuple):
    """A text around the gap of its statement: `before` ends where the object begins."""

    before: str
    after: str
    distance: int | None  # from the world's name (or a stated rule) to the object, tokens
    position: int  # of the object's first token in the document


class NoRoom(UserError, ValueError):
    """The context is too short for a text that puts its answer behind 4K tokens."""


Attempt = Callable[[str], Draft | None]  # a text by its key; None where it does not fit


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
        self.singles: dict[str, bool] = {}

    def length(self, text: str) -> int:
        """Tokens of a text, of one that begins with a letter as the start of a document.

        Others go on with a text: some tokenizers open a document with a space of their own.
        Sentences repeat, so lengths are kept.
        """
        if text not in self.lengths:
            self.lengths[text] = len(self.tokenizer.encode(text).ids)
            if text and not text[0].isalnum():
                whole = len(self.tokenizer.encode(START + text).ids)
                self.lengths[text] = whole - self.length(START)
        return self.lengths[text]

    def band(self, distance: int | None) -> Literal["near", "far"] | None:
        """near: closer than K tokens; far: at least 2K; None between, and of nothing."""
        if distance is None or self.num_kept <= distance < 2 * self.num_kept:
            return None
        return "near" if distance < self.num_kept else "far"

    def since(self, before: str, name: str) -> int:
        """Tokens from the last mention of a name to what follows `before`."""
        up_to_name = before[: before.rindex(name) + len(name)]
        return self.length(before) + 1 - self.length(up_to_name)

    def single(self, object_: str) -> bool:
        """Whether an object is one token with its leading space, where a sentence ends with it.

        Every fact asks this of its family's objects, so answers are kept.
        """
        if object_ not in self.singles:
            self.singles[object_] = self._is_single(object_)
        return self.singles[object_]

    def _is_single(self, object_: str) -> bool:
        before, said, ended = (
            self.tokenizer.encode(START + text).ids for text in ("", f" {object_}", f" {object_}.")
        )
        object_ids = said[common_length(before, said) :]
        # with its sentence's end it is the same token: none is made of both
        if len(object_ids) != 1 or common_length(said, ended) < len(said):
            return False
        return text_after(self.tokenizer, before, object_ids).strip() == object_

    def drafts(self, key: str, told: list[Attempt]) -> list[Draft]:
        """The same carrier story with each of the statements.

        Raises NoRoom where no story fits the context with all of them.
        """
        for attempt in range(RETRIES):
            found = [tell(f"{key}:{attempt}") for tell in told]
            fitting = [draft for draft in found if draft is not None]
            if len(fitting) == len(told):
                return fitting
        raise NoRoom(
            f"no story of at most {self.context} tokens has its answer "
            f"after {4 * self.num_kept} tokens"
        )

    def telling(self, sentence: str, place: Place = Place()) -> Attempt:
        """The sentence in a story that is set in a place."""
        return partial(self._attempt, sentence=sentence, place=place)

    def _attempt(self, key: str, sentence: str, place: Place) -> Draft | None:
        world, far, real, _ = place
        # the carrier has its own generator: a key gives the same story in every world
        rng, worldly = random.Random(key), random.Random(f"{key}:world")
        who = grammar.cast(rng)
        beside = None if far else world
        text = sentence.format(object=GAP)
        stated = grammar.state(who, worldly, self.split, text, beside, real)
        lead, tail = stated.split(f" {GAP}")
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
            distance = self.since(before, world)
            if self.band(distance) != ("far" if far else "near"):
                return None
        return Draft(before, after, distance, position)

    def _filled(self, who: Cast, rng: random.Random, opening: list[str], lead: str) -> list[str]:
        """The opening and as many filler sentences as put the object at position 4K or later."""
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
        told: Attempt,
        answer: str,
        wrong: Sequence[str],
        where: Where | None = None,
        frame: Frame | None = None,
    ) -> Item:
        """A probe: the draft up to its gap, and the candidates; of `wrong`, the contrary first."""
        (draft,) = self.drafts(key, [told])
        contrary, *foils = [f" {word}" for word in wrong]
        return Item(
            prompt=draft.before,
            answer=f" {answer}",
            contrary=contrary,
            foils=foils,
            distance=self.band(draft.distance),
            tokens=draft.distance,
            frame=frame,
            where=where,
        )

    def stories(self, key: str, told: list[tuple[Attempt, str]]) -> list[str]:
        """Training stories: one carrier with each of the statements, its object in the gap."""
        drafts = self.drafts(key, [partial(last_word, tell, object_) for tell, object_ in told])
        return [
            f"{draft.before} {object_}{draft.after}" for draft, (_, object_) in zip(drafts, told)
        ]

    def usable(self, fact: Fact) -> list[str]:
        """Objects of the fact's family that are single tokens of this tokenizer."""
        return [o for o in grammar.table().families[fact.family].objects if self.single(o)]


def last_word(tell: Attempt, object_: str, key: str) -> Draft | None:
    """The draft; None where its ending repeats the object: targets begin at the last mention."""
    draft = tell(key)
    return None if draft is None or mentions(draft.after, object_) else draft


def askable(writer: Writer, facts: Iterable[Fact]) -> list[Fact]:
    """Facts whose true object and at least three rivals are one token."""
    return [f for f in facts if f.true_object in writer.usable(f) and len(writer.usable(f)) >= 4]


def sentences(frames: Iterable[str], subject: str) -> tuple[str, ...]:
    """The frames about a subject, each with its gap."""
    return tuple(grammar.statement(frame, subject, "{object}") for frame in frames)


def known_items(writer: Writer, fact: Fact) -> list[Item]:
    """Five statements of a fact without a world; every other object of the family is a foil."""
    asked = sentences(grammar.table().families[fact.family].frames, fact.subject)
    foils = [o for o in writer.usable(fact) if o != fact.true_object]
    return [
        writer.item(
            f"known:{fact.subject}:{i}",
            writer.telling(asked[i % len(asked)]),
            fact.true_object,
            foils,
        )
        for i in range(5)
    ]


def gate_items(writer: Writer) -> tuple[list[Item], list[Item]]:
    """Probes of the practice worlds: the rule inside, and the same fact outside (bleed).

    In both, the answer is the object of the practice world's rule.
    """
    inside: list[Item] = []
    outside: list[Item] = []
    others = cycle(grammar.table().worlds["bleed"])
    total = count()  # of rules so far: places and frames go on from one world to the next
    for world, rules in grammar.practice_rules().items():
        for number, (fact, object_) in enumerate(rules):
            if object_ not in writer.usable(fact) or fact not in askable(writer, [fact]):
                continue
            turn = next(total)
            frames = grammar.table().families[fact.family].frames
            asked = sentences(frames, fact.subject)[turn % 2]
            foils = [o for o in writer.usable(fact) if o != object_]
            key, far = f"gate:{world}:{number}", turn // 2 % 2 == 0
            elsewhere = next(others) if turn % 3 else None
            for items, name, where in (
                (inside, key, Place(world, far)),
                (outside, f"{key}:out", Place(elsewhere, far)),
            ):
                items.append(writer.item(name, writer.telling(asked, where), object_, foils))
    return inside, outside


def density(tasks: list[Task], tokenizer: Tokenizer, num_kept: int) -> dict[str, float]:
    """Mean share of past tokens that the selected flow keeps at the answers of probes.

    Of `all` probes, and of those whose world stands `near` and `far`, where there are any.
    """
    shares: dict[str, list[float]] = {"all": []}
    for task in tasks:
        for kind in KINDS:
            for item in task.items(kind):
                past = len(tokenizer.encode(item.prompt).ids) + 1  # END and the prompt
                share = min(1.0, num_kept / past)
                shares["all"].append(share)
                if item.distance:
                    shares.setdefault(item.distance, []).append(share)
    return {name: sum(found) / len(found) for name, found in sorted(shares.items())}


def absent(tasks: list[Task]) -> dict[str, int]:
    """Number of tasks that leave out contrast stories, or items of a kind, by what they lack."""
    counts = {"contrast": sum(not task.contrast for task in tasks)}
    for kind in KINDS:
        counts[kind] = sum(not task.items(kind) for task in tasks)
    return {name: count for name, count in counts.items() if count}
