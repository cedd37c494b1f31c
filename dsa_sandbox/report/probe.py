"""Items of tasks as arms answered them: in the base, right after the task, at the stream's end."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dsa_sandbox.metrics.discrimination import probability
from dsa_sandbox.metrics.forgetting import number

Record = dict[str, Any]  # a line of records.jsonl
Rows = Mapping[str, int | None]  # row of the records by stage
STAGES = ("base", "after", "end")


class Said(NamedTuple):
    """A word that was said, p of the expected one against the contrary one, and exact match."""

    word: str
    p: float
    exact: bool


Answers = dict[str, Said | None]  # by stage; None where the arm has no answer


class Probe(NamedTuple):
    """An item of a task, and what each arm said to it."""

    kind: str
    item: int  # number among the task's items of its kind, from 0
    where: str | None
    distance: str | None
    tokens: int | None  # from the world's name to the answer
    asked: str
    expected: str
    answers: dict[str, Answers]  # by the name of the arm


def rows_of(protocol: str, task: int, num_tasks: int) -> Rows:
    """The row of records of each stage of a task, None where the protocol has none.

    Tasks are counted from 0 and rows from the base, as in the records: task 0 ends in row 1.
    """
    after = None if protocol == "joint" else task + 1
    end = None if protocol == "independent" else num_tasks
    return {"base": 0, "after": after, "end": end}


def said(record: Record) -> Said:
    """The answer that a record holds."""
    p = probability(number(record, "answer"), number(record, "contrary"))
    return Said(str(record["said"]).strip(), p, bool(record["exact"]))


def answers(records: Iterable[Record], of: Record, rows: Rows) -> Answers:
    """What the records of an arm hold, at each stage, of the item that a record is about."""
    found = {}
    for record in records:
        if all(record[key] == of[key] for key in ("kind", "task", "item")):
            found[record["row"]] = said(record)
    return {stage: None if row is None else found.get(row) for stage, row in rows.items()}


def probe(of: Record, answered: dict[str, Answers]) -> Probe:
    """The item of a record with the answers of arms."""
    return Probe(
        kind=of["kind"],
        item=of["item"],
        where=of.get("where"),
        distance=of.get("distance"),
        tokens=of.get("tokens"),
        asked=of["asked"],
        expected=of["expected"].strip(),
        answers=answered,
    )


def items_of(records: Iterable[Record], task: int) -> list[Record]:
    """The records of a task's items in the base, in the order of the items."""
    return [record for record in records if record["row"] == 0 and record["task"] == task]


def first_of(items: list[Record], kind: str, distance: str | None = None) -> Record | None:
    """The first item of a kind and distance; an item in the world without one counts as near."""
    for record in items:
        if record["kind"] == kind and distance in (None, record.get("distance") or "near"):
            return record
    return None


def inside(items: list[Record]) -> Record | None:
    """The first far item in the world, or the first near one where no item is far."""
    return first_of(items, "validation_in", "far") or first_of(items, "validation_in")


def outside(items: list[Record]) -> Record | None:
    """The first item outside of the world."""
    return first_of(items, "validation_out")
