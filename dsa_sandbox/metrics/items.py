"""What becomes of single items: lost, gained, leaked into, right by distance."""

import math
from collections.abc import Iterable

import numpy as np

from dsa_sandbox.metrics.forgetting import (
    NAN,
    Formula,
    Record,
    after_own_task,
    exp,
    item_margin,
    mean,
    meant,
    right,
    select,
)

KNOWN = ("outside", "neighbour")  # what the base knew: true facts that no task has changed
DISTANCES = (16, 32, 64, 128, 256, 400)  # tokens
FORMULAS = {
    "lost": Formula("1->0", "number of clozes exact after task j and not after T", "lower"),
    "gained": Formula("0->1", "number of clozes exact after T and not after task j", "higher"),
    "known_lost": Formula(
        "known 1->0",
        "share of items outside and neighbours right in row 0 and wrong after T",
        "lower",
        "end",
    ),
    "known_gained": Formula(
        "known 0->1",
        "share of items outside and neighbours wrong in row 0 and right after T",
        "higher",
        "end",
    ),
    "known_lost_true": Formula(
        "1->0 - chance",
        "known 1->0, minus (1 - a)(1 - a') / (k - 1), floor 0; a, a' shares right before and "
        "after, k candidates",
        "lower",
        "end",
    ),
    "known_gained_true": Formula(
        "0->1 - chance", "known 0->1, minus (1 - a)(1 - a') / (k - 1), floor 0", "higher", "end"
    ),
    "leakage": Formula(
        "leakage",
        "mean rise over row 0 of P(new) after T, on items outside that name no world",
        "lower",
        "end",
    ),
    "neighbour_kl": Formula(
        "spec. KL", "mean KL(base || now) at the gap of neighbours after T, nats", "lower", "end"
    ),
}


def transitions(before: Iterable[bool], after: Iterable[bool]) -> tuple[int, int]:
    """How many items went 1 -> 0 and 0 -> 1 (Harmon et al. 2025, arXiv 2510.17776)."""
    pairs = list(zip(before, after, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def by_chance(before: float, after: float, chance: float) -> float:
    """Share of items that go 1 -> 0 (and 0 -> 1) by guessing alone, given the shares right.

    After the response model of Harmon et al. 2025: an item is known, or one of k = 1 / chance
    candidates is drawn, anew each time. It follows that (1 - a) k / (k - 1) of the items are
    guessed, and (1/k)(1 - 1/k) of those guessed both times go from right to wrong:
    (1 - a)(1 - a') / (k - 1) of all.
    """
    return (1 - before) * (1 - after) * chance / (1 - chance)


def paired(
    records: list[Record], kinds: Iterable[str], rows: tuple[int, int]
) -> list[tuple[Record, Record]]:
    """The same item's records in two rows, where both have it."""
    first, second = (
        {
            (r["kind"], r["task"], r["item"]): r
            for kind in kinds
            for r in select(records, kind, row=n)
        }
        for n in rows
    )
    return [(first[key], second[key]) for key in first if key in second]


def cloze_transitions(records: list[Record], num_tasks: int) -> tuple[int, int]:
    """Clozes that went 1 -> 0 and 0 -> 1 (exact match) from the row of their task to row T."""
    end = {(r["task"], r["item"]): r["gen_em"] for r in select(records, "cloze", row=num_tasks)}
    own = [r for r in after_own_task(records, "cloze") if (r["task"], r["item"]) in end]
    return transitions((r["gen_em"] for r in own), (end[r["task"], r["item"]] for r in own))


def leakage(records: list[Record], num_tasks: int) -> float:
    """Mean rise over row 0 of P(new) on items outside whose prompt names no world, after task T.

    Neighbours are left out: to some of them, what is new in a task's world is the true answer.
    """
    pairs = paired(records, ("outside",), (0, num_tasks))
    return mean(
        exp(now["contra"]) - exp(base["contra"])
        for base, now in pairs
        if now["distance"] is None and now["contra"] is not None
    )


def figures(
    records: list[Record], num_tasks: int, course: str = "sequence", chance: float = NAN
) -> dict[str, float]:
    """The figures of FORMULAS; `chance` is that of guessing an item of KNOWN, NaN if unknown."""
    lost, gained = cloze_transitions(records, num_tasks)
    pairs = paired(records, KNOWN, (0, num_tasks))
    before, after = (
        ([item_margin(r) > 0 for r in side] for side in zip(*pairs)) if pairs else ((), ())
    )
    losses, gains = (count / len(pairs) if pairs else NAN for count in transitions(before, after))
    guessed = by_chance(mean(before), mean(after), chance)
    kls = [r["kl"] for r in select(records, "neighbour", row=num_tasks) if r.get("kl") is not None]
    values = {
        "lost": float(lost),
        "gained": float(gained),
        "known_lost": losses,
        "known_gained": gains,
        "known_lost_true": float(np.maximum(losses - guessed, 0)),
        "known_gained_true": float(np.maximum(gains - guessed, 0)),
        "leakage": leakage(records, num_tasks),
        "neighbour_kl": mean(kls),
    }
    return meant(values, FORMULAS, course)


def nearest_distance(distance: int) -> int:
    """The one of DISTANCES that is nearest in ratio."""
    return min(DISTANCES, key=lambda d: abs(math.log(max(distance, 1) / d)))


def right_by_distance(records: Iterable[Record]) -> dict[int, float]:
    """Share right of items by the distance to what they must recall; those without one left out."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        if record["distance"] is not None:
            groups.setdefault(nearest_distance(record["distance"]), []).append(record)
    return {distance: right(groups[distance]) for distance in sorted(groups)}


def by_distance(
    records: list[Record], num_tasks: int, course: str = "sequence"
) -> dict[str, dict[str, dict[int, float]]]:
    """Of clozes and paraphrases: share right by distance, after their own task and after T."""
    return {
        kind: {
            "own": right_by_distance(after_own_task(records, kind, course)),
            "end": right_by_distance(select(records, kind, row=num_tasks)),
        }
        for kind in ("cloze", "paraphrase")
    }
