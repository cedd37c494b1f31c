"""The novel family (control): a new world adds a fact that contradicts nothing.

"The kite is green", where the facts know no colour of the kite. Everywhere else a true fact of the
same relation about another subject is told and asked, so that nothing known is contradicted: the
control that tells contradiction from mere learning (arXiv 2502.04390 finds that contradictory
updates destroy unrelated knowledge and additions do not).
"""

import random

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.task_builder import Matter, Row
from dsa_sandbox.tasks.writing import Writer, sentences


@families.register("novel")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` tasks; the relation is that of a known fact, the subject one of another relation.

    `true_object` is the known fact's object, which is told outside the world.
    """
    rng = random.Random(f"novel:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    facts = rng.sample(known, len(known))
    taken: set[tuple[str, str]] = set()
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        strangers = strangers_to(fact)
        fresh = [subject for subject in strangers if (fact.family, subject) not in taken]
        subject = rng.choice(fresh or strangers)
        taken.add((fact.family, subject))
        new = rng.choice([o for o in writer.usable(fact) if o != fact.true_object])
        tasks.append(Row(writer, number, seed, addition(writer, world, fact, subject, new)).task())
    return tasks


def strangers_to(fact: Fact) -> list[str]:
    """Subjects of the same split for which the table has no entry in the fact's relation."""
    families = grammar.table().families
    split = families[fact.family].split
    others = [family for family in families.values() if family.split == split]
    told = {one.subject for one in families[fact.family].facts}
    return [
        one.subject
        for family in others
        for one in family.facts
        if one.subject not in told and not one.reserved
    ]


def addition(writer: Writer, world: str, fact: Fact, subject: str, new: str) -> Matter:
    """In the world, `subject` has `new`; elsewhere, the fact holds."""
    family = grammar.table().families[fact.family]
    return Matter(
        world,
        fact,
        subject,
        true=fact.true_object,
        new=new,
        inside=sentences(family.frames, subject),
        unseen=sentences(family.paraphrases, subject),
        outside=sentences(family.frames, fact.subject),
        words=writer.usable(fact),
    )
