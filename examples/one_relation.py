"""A task family of one's own in one file: contradictions of a single relation, such as colour.

`dsa-sandbox make-tasks --include examples/one_relation.py --family one-relation --count 4`

Tasks of one relation share their sentences and their objects, so that each interferes with the
others more than tasks of mixed relations do.
"""

import random
from collections import Counter

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.task_builder import Row, contrary
from dsa_sandbox.tasks.writing import Writer


@families.register("one-relation")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` tasks, each a fact of one relation with another object in a world of its own.

    `known` holds the facts that all bases know; the relation is the one with most of them. Random
    draws depend on the seed alone, so that the same command makes the same tasks again.
    """
    rng = random.Random(f"one-relation:{writer.split}:{seed}")
    [(relation, _)] = Counter(fact.family for fact in known).most_common(1)
    facts = [fact for fact in known if fact.family == relation]
    worlds = rng.sample(grammar.table().worlds[writer.split], count)
    tasks = []
    for number, world in enumerate(worlds):
        fact = facts[number % len(facts)]
        # `usable` leaves out objects that are more than one token
        new = rng.choice([name for name in writer.usable(fact) if name != fact.true_object])
        # the builder writes stories, contrast stories and items in the templates of the relation
        tasks.append(Row(writer, number, seed, contrary(writer, world, fact, new)).task())
    return tasks
