"""The style family (control): a new world states true facts in another dialect.

"In Aldo the colour of the lemon looks yellow": one word of a frame is another there, the object
stays the true one. The gap stands where that word does: `true_object` is the usual word and
`new_object` that of the dialect. Frames are such that pre-training leaves no doubt of the usual
word ("the lemon" goes on with several verbs, "the colour of the lemon" with one): what is asked
outside is known, as a fact is. A dialect is not about one subject: training stories speak of three
of the relation, paraphrases ask for the word about others. Neighbours ask for objects, in usual
words.
"""

import random
from typing import NamedTuple

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.task_builder import Matter, Row
from dsa_sandbox.tasks.writing import Writer

NUM_TOLD = 3  # subjects that training stories speak of


class Dialects(NamedTuple):
    """A frame of a relation, and the words that `{word}` may be without a change of fact."""

    frame: str
    words: tuple[str, str, str, str]  # the usual one first


# No ending of a story contains one of these words: the statement has the last mention.
DIALECTS = {
    "colour": Dialects(
        "the colour of the {subject} {word} {object}", ("is", "looks", "stays", "turns")
    ),
    "motion": Dialects("the {subject} always {word} {object}", ("goes", "moves", "comes", "turns")),
    "temperature": Dialects(
        "it is true that the {subject} {word} {object}", ("is", "looks", "turns", "grows")
    ),
    "size": Dialects(
        "the body of the {subject} {word} {object}", ("is", "looks", "stays", "grows")
    ),
    "sound": Dialects(
        "the sound of the {subject} {word} {object}", ("is", "goes", "stays", "comes")
    ),
    "taste": Dialects(
        "the taste of the {subject} {word} {object}", ("is", "feels", "stays", "turns")
    ),
    "habitat": Dialects(
        "the home of the {subject} {word} the {object}", ("is", "looks", "stays", "feels")
    ),
    "time": Dialects(
        "the {subject} comes {word} in the {object}", ("out", "back", "down", "around")
    ),
    "material": Dialects("the {subject} is made {word} {object}", ("of", "with", "by", "for")),
    "use": Dialects(
        "with the {subject} {word} learn to {object}", ("you", "some", "people", "everyone")
    ),
    "role": Dialects(
        "the work of the {subject} {word} {object}", ("is", "looks", "stays", "feels")
    ),
    "order": Dialects(
        "after the {subject} {word} the {object}", ("comes", "goes", "waits", "stays")
    ),
}


@families.register("style")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` dialects of the relations of known facts, each in a separate world.

    UserError where no relation has its words as single tokens.
    """
    rng = random.Random(f"style:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    facts = [
        fact
        for fact in rng.sample(known, len(known))
        if all(writer.single(word) for word in DIALECTS[fact.family].words)
    ]
    if not facts:
        raise UserError("tasks.family=style: the base's tokenizer has no dialect in single tokens")
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        new = rng.choice(DIALECTS[fact.family].words[1:])
        tasks.append(Row(writer, number, seed, dialect(known, world, fact, new)).task())
    return tasks


def dialect(known: list[Fact], world: str, fact: Fact, new: str) -> Matter:
    """In the world, the word `new` states the relation, for `fact` and two more subjects."""
    words = DIALECTS[fact.family].words
    same = [fact, *(one for one in known if one.family == fact.family and one != fact)]
    reserved = [one for one in grammar.table().families[fact.family].facts if one.reserved]
    told = tuple(true_sentence(one) for one in same[:NUM_TOLD])
    unseen = tuple(true_sentence(one) for one in same[NUM_TOLD:] or reserved)
    return Matter(world, fact, fact.subject, words[0], new, told, unseen, told, list(words))


def true_sentence(fact: Fact) -> str:
    """The fact, with a gap in the place of the dialect's word."""
    frame = DIALECTS[fact.family].frame
    return frame.format(subject=fact.subject, object=fact.true_object, word="{object}")
