"""The contradiction family: a new world gives a known fact another object."""

import random

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.task_builder import Row, contrary
from dsa_sandbox.tasks.writing import Writer


@families.register("contradiction")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` tasks over the known facts, each in a separate world; the seed gives their order.

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
        tasks.append(Row(writer, number, seed, contrary(writer, world, fact, new)).task())
    return tasks
