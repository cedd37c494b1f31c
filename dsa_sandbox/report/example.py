"""The one example in words of a report, chosen before any arm has learned.

The choice reads row 0 alone, what the bases say, so nothing that an arm learned or forgot can
decide it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dsa_sandbox.report.probe import (
    Answers,
    Probe,
    Record,
    answers,
    inside,
    items_of,
    outside,
    probe,
    rows_of,
)

RULE = (
    "the first far item in the world of the first task that every base answers with the true "
    "object, chosen from the bases' answers alone"
)


class Example(NamedTuple):
    """A probe in the world of a task, the same for all arms."""

    task: int  # from 1
    true_object: str
    probe: Probe


def true_object(items: list[Record]) -> str | None:
    """The object outside of a task's world: what its first item there expects."""
    record = outside(items)
    return None if record is None else str(record["expected"]).strip()


def example(arms: Mapping[str, Iterable[Record]], num_tasks: int) -> Example | None:
    """The example of the arms of one stream of one seed, by name; None where no item fits RULE.

    Their records are those of records.jsonl, or the few that a study keeps of them, of streams of
    `num_tasks` tasks. Of a task without far items, the first near one is taken.
    """
    listed = {name: list(records) for name, records in arms.items()}
    first = next(iter(listed.values()), [])
    for task in range(num_tasks):
        items = items_of(first, task)
        item, true = inside(items), true_object(items)
        if item is None or true is None:
            continue
        rows = rows_of("sequential", task, num_tasks)
        found: dict[str, Answers] = {}
        for name, records in listed.items():
            found[name] = answers(records, item, rows)
        bases = [by_stage["base"] for by_stage in found.values()]
        if all(said is not None and said.word == true for said in bases):
            return Example(task + 1, true, probe(item, found))
    return None


def lines(found: Example, seed: int, world: str = "its world") -> list[str]:
    """The example as two sentences: what is asked, and what each arm says when."""
    one = found.probe
    told = (
        f"Example (seed {seed}, task {found.task}: {one.expected} in {world}, {found.true_object} "
        f'elsewhere): "{one.asked} ..."'
    )
    said = []
    for name, by_stage in one.answers.items():
        after, end = by_stage["after"], by_stage["end"]
        after_word = after.word if after else "-"
        said.append(f"{name} {after_word}, at the end {end.word if end else '-'}")
    return [told, f"base {found.true_object}; after its task: {'; '.join(said)}."]
