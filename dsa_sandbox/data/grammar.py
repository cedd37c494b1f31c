"""Child-level stories over a table of facts: the built-in data set, and the carrier of every task.

A story is a pure function of (seed, index). Some stories are set in *practice worlds*, where a few
facts are otherwise, always in the same way: so a base learns that a world's name decides.
"""

import random
import re
import tomllib
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

PIECE = r" ?\w+| ?[^\w\s]|\s"  # how the grammar's text falls into words; each keeps its space

RULES_PER_WORLD = 2  # contrary facts of a practice world
AGAIN_SHARE = 0.25  # of filler sentences that name the story's world again

Split = Literal["test", "development"]  # of tasks
FamilySplit = Literal["practice", "development", "test"]


class Fact(NamedTuple):
    """One entry of the table: in `family`, `subject` has `true_object`."""

    family: str
    subject: str
    true_object: str
    reserved: bool  # never a task: serves as a neighbour


class Family(NamedTuple):
    """A relation, its sentences and its facts; only `practice` families are contradicted."""

    name: str
    split: FamilySplit
    frames: tuple[str, ...]
    paraphrases: tuple[str, ...]
    objects: tuple[str, ...]
    facts: tuple[Fact, ...]


class Table(NamedTuple):
    """All families by name, and the names of worlds by their use."""

    families: dict[str, Family]
    worlds: dict[str, tuple[str, ...]]

    @property
    def facts(self) -> list[Fact]:
        return [fact for family in self.families.values() for fact in family.facts]


@cache
def entries() -> dict[str, Any]:
    """facts.toml, read once."""
    text = resources.files("dsa_sandbox.data").joinpath("facts.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def table() -> Table:
    """The families and worlds of facts.toml."""
    families = {}
    raw = entries()
    for name, row in raw["families"].items():
        facts = tuple(
            Fact(name, subject, true_object, reserved=number >= len(row["facts"]) - 2)
            for number, (subject, true_object) in enumerate(row["facts"])
        )
        families[name] = Family(
            name,
            row["split"],
            tuple(row["frames"]),
            tuple(row["paraphrases"]),
            tuple(row["objects"]),
            facts,
        )
    return Table(families, {use: tuple(names) for use, names in raw["worlds"].items()})


@cache
def practice_rules() -> dict[str, tuple[tuple[Fact, str], ...]]:
    """For each practice world two facts of the practice families and their object there."""
    practice = [f for f in table().facts if table().families[f.family].split == "practice"]
    rules = {}
    for world in table().worlds["practice"]:
        rng = random.Random(f"practice:{world}")
        chosen = rng.sample(practice, RULES_PER_WORLD)
        rules[world] = tuple(
            (f, rng.choice([o for o in table().families[f.family].objects if o != f.true_object]))
            for f in chosen
        )
    return rules


GIRLS = ("Lily", "Mia", "Anna", "Sue", "Emma", "Lucy", "Zoe", "Ella", "Nina", "Rosa", "Ivy", "Kate")
BOYS = ("Tom", "Ben", "Max", "Sam", "Tim", "Jack", "Leo", "Finn", "Paul", "Noah", "Adam", "Mark")
ANIMALS = ("dog", "cat", "bird", "frog", "rabbit", "fox", "duck", "bear", "mouse", "horse")
THINGS = ("ball", "stick", "box", "cup", "doll", "toy", "flower", "shell", "basket", "leaf")
PLACES = ("park", "house", "hill", "lake", "farm", "market", "school", "bridge", "village", "field")
FEELINGS = ("happy", "sad", "tired", "proud", "brave", "kind", "hungry", "sleepy", "glad", "calm")

# {A} hero, {he} {him} {his} {himself} of the hero; {B} friend, {bhe} {bhis} of the friend.
OPENINGS = (
    "Once upon a time there was a {child} named {A}. {He} lived near the {place} with {B}.",
    "One day {A} went to the {place} with {his} friend {B}.",
    "{A} was a {feeling} {child}. Every day {he} and {B} walked to the {place}.",
    "There once was a little {animal} who had two friends, {A} and {B}.",
    "It was a quiet day at the {place}. {A} and {B} wanted to play.",
)
BODY = (
    "{A} saw a {animal} and {he} gave it a {thing}.",
    "{B} was {feeling} because {bhe} had lost {bhis} {thing}.",
    "{A} took {his} {thing} and ran to the {place}.",
    "The {animals} near the {thing} were {feeling}.",
    "The {animal} near the {things} was {feeling}.",
    "The {animals} by the {place} have a {thing}.",
    "The {animal} by the {places} has a {thing}.",
    "{A} looked at {himself} in the lake and laughed.",
    "{B} made {bhimself} a little {thing}.",
    "{A} hurt {himself}, but {he} did not cry.",
    '"Can I have the {thing}?" asked {A}. "Yes, you can," said {B}.',
    '"Look at the {animal}!" said {B}. {A} smiled at {bhim}.',
    '{B} said, "I am {feeling} today." {A} gave {bhim} a hug.',
    "Then the {animals} ran away and the {thing} was gone.",
    "They looked for the {thing} behind the {place}, but it was not there.",
    "At last {A} found the {thing} under a tree.",
    "{A} helped {B}, and {bhe} was {feeling} again.",
    "{B} did not want to share {bhis} {thing} with {A}.",
    "The {animal} wanted to play with {A}, so {he} threw the {thing}.",
    "{A} and {B} sat down and ate some food together.",
    "It began to get dark and {B} wanted to go home.",
    "{A} was not {feeling}, but {he} was {feeling2}.",
    "An old man gave {A} a {thing} and {he} thanked him.",
    "The {things} were in the box near the {place}.",
    "The {thing} was in the box near the {animals}.",
)
ENDINGS = (
    "{A} went home and {he} was {feeling}. The end.",
    "They were friends from that day on. The end.",
    "{B} thanked {A}, and they played until the day was over.",
    "In the end {A} gave the {thing} to {B} and {he} smiled.",
    "{A} learned to be {feeling}. The end.",
)
WORLD_OPENINGS: dict[Split, tuple[str, ...]] = {
    "test": ("This is a story from {world}.", "Far away in {world} there was a {place}."),
    "development": ("Today we go to {world}.", "A long road led them all the way to {world}."),
}
WORLD_INLINE: dict[Split, tuple[str, ...]] = {
    "test": ("In {world} {statement}.", "Here in {world} {statement}."),
    "development": ("Over in {world} {statement}.", "All over {world} {statement}."),
}
# Fits every world after its name: the network must look back at the name to know which one.
WORLD_AGAIN = (
    "{A} liked it in {world}.",
    "All the {animals} of {world} were {feeling}.",
    "{B} had a {thing} from {world}.",
    "They wanted to stay in {world}.",
    "Every {animal} in {world} was {feeling}.",
)
REAL_INLINE = "In the real world {statement}."
PLAIN: dict[Split, tuple[str, ...]] = {
    "test": ("{A} knew that {statement}.", 'A wise woman said, "{Statement}."'),
    "development": ("{B} had heard that {statement}.", '"{Statement}," said {A}.'),
}


class Cast(NamedTuple):
    """The characters and things of a story: slot values for its sentences."""

    slots: dict[str, str]

    def say(self, template: str, rng: random.Random, **more: str) -> str:
        """The template with its slots filled; things, animals and feelings are drawn anew."""
        animal, thing, place = rng.choice(ANIMALS), rng.choice(THINGS), rng.choice(PLACES)
        feeling, feeling2 = rng.sample(FEELINGS, 2)
        drawn = {
            "animal": animal,
            "animals": plural(animal),
            "thing": thing,
            "things": plural(thing),
            "place": place,
            "places": plural(place),
            "feeling": feeling,
            "feeling2": feeling2,
        }
        return template.format(**self.slots, **drawn, **more)


def plural(noun: str) -> str:
    """Plural of the grammar's own nouns."""
    irregular = {"mouse": "mice", "leaf": "leaves", "box": "boxes", "fox": "foxes"}
    return irregular.get(noun, noun + "s")


def cast(rng: random.Random) -> Cast:
    """A hero and a friend, each with pronouns that agree."""
    hero_is_girl, friend_is_girl = rng.random() < 0.5, rng.random() < 0.5
    hero = rng.choice(GIRLS if hero_is_girl else BOYS)
    friend = rng.choice([n for n in (GIRLS if friend_is_girl else BOYS) if n != hero])
    slots = {"A": hero, "B": friend, "child": "girl" if hero_is_girl else "boy"}
    for prefix, is_girl in (("", hero_is_girl), ("b", friend_is_girl)):
        forms = ("she", "her", "her", "herself") if is_girl else ("he", "him", "his", "himself")
        slots |= {prefix + slot: form for slot, form in zip(("he", "him", "his", "himself"), forms)}
    slots["He"] = slots["he"].capitalize()
    return Cast(slots)


def num_words(text: str) -> int:
    """Words of the grammar's tokenizer in `text`."""
    return len(re.findall(PIECE, text))


def statement(frame: str, subject: str, object_: str) -> str:
    """A frame filled in, without capital and full stop."""
    return frame.format(subject=subject, object=object_)


def state(
    who: Cast, rng: random.Random, split: Split, text: str, world: str | None, real: bool = False
) -> str:
    """A sentence that states `text`: inside `world` by its name, plainly where there is none."""
    if real:
        return REAL_INLINE.format(statement=text)
    if world:
        return rng.choice(WORLD_INLINE[split]).format(world=world, statement=text)
    template = rng.choice(PLAIN[split])
    return who.say(template, rng, statement=text, Statement=text[0].upper() + text[1:])


def story(seed: int, index: int, max_words: int = 126, practice_share: float = 0.3) -> str:
    """Story number `index`, of between half of `max_words` and `max_words` words."""
    rng = random.Random(f"story:{seed}:{index}")
    who, worlds = cast(rng), table().worlds
    world: str | None = None
    rules: tuple[tuple[Fact, str], ...] = ()
    draw = rng.random()
    if draw < practice_share:
        world = rng.choice(worlds["practice"])
        rules = practice_rules()[world]
    elif draw < practice_share + 0.35 * (1 - practice_share):
        world = rng.choice(worlds[rng.choice(("contrast", "bleed", "development", "test", "test"))])
    at_start = world is not None and rng.random() < 0.6  # else next to one fact only
    scale = max(1, round(max_words / 126))  # longer stories state more facts
    facts: list[tuple[Fact, str, str | None]] = []
    for fact, object_ in rng.sample(rules, len(rules) if at_start else 1) if rules else ():
        facts.append((fact, object_, None if at_start else world))
    ruled = {fact for fact, _ in rules}
    for fact in rng.sample(table().facts, scale * (1 if rules else rng.choice((2, 3, 4)))):
        if fact not in ruled:
            beside = world if not (at_start or facts) else None
            facts.append((fact, fact.true_object, beside))
    rng.shuffle(facts)
    said = []
    for fact, object_, beside in facts:
        family = table().families[fact.family]
        frame = rng.choice(family.frames + family.paraphrases)
        said.append((statement(frame, fact.subject, object_), beside))
    opening, sentences, named = [], [], at_start
    split: Split
    if at_start:
        split = rng.choice(("test", "development"))
        opening.append(who.say(rng.choice(WORLD_OPENINGS[split]), rng, world=world or ""))
    opening.insert(rng.randrange(2) if opening else 0, who.say(rng.choice(OPENINGS), rng))
    target = rng.randint(int(max_words * 0.52), int(max_words * 0.85))
    spots = sorted(rng.random() for _ in said)
    count = num_words(" ".join(opening))
    ending = who.say(rng.choice(ENDINGS), rng)
    room = max_words - num_words(ending)
    number = 0
    while count < min(target, room) or number < len(said):
        if number < len(said) and count >= spots[number] * target:
            sentence, beside = said[number]
            real = world is None and rng.random() < 0.15
            split = rng.choice(("test", "development"))
            text = state(who, rng, split, sentence, beside, real)
            named = named or beside is not None
            number += 1
        elif named and rng.random() < AGAIN_SHARE:
            text = who.say(rng.choice(WORLD_AGAIN), rng, world=world or "")
        else:
            text = who.say(rng.choice(BODY), rng)
        length = num_words(text) + 1
        if count + length > room:
            break
        sentences.append(text)
        count += length
    return " ".join([*opening, *sentences, ending])


def all_words() -> list[str]:
    """Sentences that hold every word of the table in every place a story can put it."""
    texts = []
    for family in table().families.values():
        for frame in family.frames + family.paraphrases:
            for fact in family.facts:
                text = statement(frame, fact.subject, fact.true_object)
                texts.append(f"{text[0].upper() + text[1:]} {text}")
        texts.append(" " + " ".join(family.objects))
    texts += [f" {name}" for names in table().worlds.values() for name in names]
    return texts


class Pair(NamedTuple):
    """A minimal pair: after `prefix`, `good` is right and `bad` wrong; `kind` names the rule."""

    kind: str
    prefix: str
    good: str
    bad: str


def minimal_pairs(seed: int, count: int) -> list[Pair]:
    """`count` pairs for pronouns and agreement each; no neighbouring word gives the answer away."""
    rng = random.Random(f"pairs:{seed}")
    pairs = []
    for _ in range(count):
        who = cast(rng)
        slots, girl = who.slots, who.slots["he"] == "she"
        opening = who.say(rng.choice(OPENINGS[:3]), rng)
        template, forms = rng.choice(
            (
                ("{A} saw a {animal} and", (" he", " she")),
                ("{A} took", (" his", " her")),
                ("{A} hurt", (" himself", " herself")),
                ("{A} was not {feeling}, but", (" he", " she")),
            )
        )
        good, bad = forms[::-1] if girl else forms
        pairs.append(Pair("pronoun", f"{opening} {who.say(template, rng)}", good, bad))
        many = rng.random() < 0.5
        place_template, forms = rng.choice(
            (
                (
                    ("The {animal} near the {things}", "The {animals} near the {thing}"),
                    (" was", " were"),
                ),
                (
                    ("The {animal} by the {places}", "The {animals} by the {place}"),
                    (" has", " have"),
                ),
            )
        )
        good, bad = forms[::-1] if many else forms
        prefix = f"{slots['A']} smiled. {who.say(place_template[many], rng)}"
        pairs.append(Pair("agreement", prefix, good, bad))
    return pairs
