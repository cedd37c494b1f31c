"""The style family: a new world has a dialect; no fact is other than everywhere.

"In Aldo the lemon looks yellow": the verb of the relation's first frame is another one there, the
object stays the true one. The gap stands where the verb does, so that `true_object` is the usual
verb and `new_object` that of the dialect. A dialect is not about one subject: training stories
speak of three of the relation, paraphrases ask for the verb of others. Neighbours ask for objects,
in usual words.
"""

import random

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.rows import Matter, Row
from dsa_sandbox.tasks.stream import Task
from dsa_sandbox.tasks.writing import Writer

NUM_TOLD = 3  # subjects that training stories speak of
# The usual verb of each relation's first frame, and those that leave the fact as it is.
VERBS = {
    "colour": ("is", "looks", "stays", "grows"),
    "motion": ("moves", "goes", "comes", "turns"),
    "temperature": ("feels", "is", "stays", "looks"),
    "size": ("is", "looks", "stays", "grows"),
    "sound": ("says", "goes", "makes", "loves"),
    "taste": ("tastes", "is", "stays", "feels"),
    "habitat": ("lives", "stays", "waits", "sleeps"),
    "time": ("comes", "goes", "looks", "waits"),
    "material": ("is", "looks", "feels", "stays"),
    "use": ("is", "looks", "feels", "stays"),
    "role": ("makes", "has", "loves", "wants"),
    "order": ("comes", "goes", "waits", "stays"),
}


@families.register("style")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` dialects of the relations of known facts, each in a world of its own.

    UserError where the tokenizer has the verbs of no relation as single tokens.
    """
    rng = random.Random(f"style:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    facts = [f for f in rng.sample(known, len(known)) if all(map(writer.single, VERBS[f.family]))]
    if not facts:
        raise UserError(
            "tasks.family=style: the base's tokenizer splits the verbs of all relations"
        )
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        new = rng.choice(VERBS[fact.family][1:])
        tasks.append(Row(writer, number, seed, dialect(known, world, fact, new)).task())
    return tasks


def dialect(known: list[Fact], world: str, fact: Fact, new: str) -> Matter:
    """In the world, the relation's verb is `new`; stories begin with `fact` and speak of others."""
    others = [one for one in known if one.family == fact.family and one != fact]
    same = [fact, *others]
    reserved = [one for one in grammar.table().families[fact.family].facts if one.reserved]
    told, unseen = same[:NUM_TOLD], same[NUM_TOLD:] or reserved
    said = tuple(true_sentence(one) for one in told)
    return Matter(
        world,
        fact,
        fact.subject,
        true=VERBS[fact.family][0],
        new=new,
        inside=said,
        unseen=tuple(true_sentence(one) for one in unseen),
        outside=said,
        words=list(VERBS[fact.family]),
    )


def true_sentence(fact: Fact) -> str:
    """The fact in its relation's first frame, with a gap in the place of the verb."""
    frame, usual = grammar.table().families[fact.family].frames[0], VERBS[fact.family][0]
    text = grammar.statement(frame, fact.subject, fact.true_object)
    return text.replace(f" {usual} ", " {object} ", 1)
