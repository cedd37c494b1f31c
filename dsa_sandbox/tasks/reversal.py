"""The reversal family: tasks change the objects of five facts, again and again.

Reversal r gives fact r mod 5 another contrary object, always in the same world: never the one that
holds there now, never the true one. The contrast stays the true fact outside. From the second round
on a row names the row that it undoes.
"""

import random

from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.registry import families
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.tasks.task_builder import Row, contrary
from dsa_sandbox.tasks.writing import Writer

NUM_FACTS = 5  # that are turned around, each in a world of its own


@families.register("reversal")
def make(writer: Writer, known: list[Fact], count: int, seed: int) -> list[Task]:
    """`count` reversals over five of the known facts, one fact after another."""
    rng = random.Random(f"reversal:{writer.split}:{seed}")
    worlds = rng.sample(grammar.table().worlds[writer.split], NUM_FACTS)
    facts = rng.sample(known, NUM_FACTS)
    tasks: list[Task] = []
    for number in range(count):
        world, fact = worlds[number % NUM_FACTS], facts[number % NUM_FACTS]
        now = tasks[number - NUM_FACTS] if number >= NUM_FACTS else None
        ruled_out = {fact.true_object, now.new_object if now else None}
        new = rng.choice([o for o in writer.usable(fact) if o not in ruled_out])
        row = Row(writer, number, seed, contrary(writer, world, fact, new))
        tasks.append(row.task(undoes=now.task if now else None))
    return tasks
