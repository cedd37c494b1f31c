"""Figures of single items: lost, gained, leaked, and right by distance."""

import math
from collections.abc import Iterable

import numpy as np

from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.metrics.forgetting import (
    LEARNED,
    WORLDLESS,
    Record,
    after_own_task,
    exp,
    item_margin,
    mean,
    right,
    select,
)

KNOWN = ("validation_out", "neighbour")  # kinds of items about true facts that no task changes
DISTANCES = (16, 32, 64, 128, 256, 400)  # tokens
FIGURES = {
    "items_lost": Figure(
        "items lost",
        "count",
        "number of validation items in the world exact after task j and not after T",
    ),
    "items_gained": Figure(
        "items gained",
        "count",
        "number of validation items in the world exact after T and not after task j",
    ),
    "known_lost": Figure(
        "known lost",
        "share",
        "validation items outside the world and neighbours right in row 0 and wrong after T",
        "end",
    ),
    "known_gained": Figure(
        "known gained",
        "share",
        "validation items outside the world and neighbours wrong in row 0 and right after T",
        "end",
    ),
    "known_lost_beyond_chance": Figure(
        "known lost beyond chance",
        "share",
        "known lost, minus (1 - a)(1 - a') / (k - 1), floor 0; a, a' shares right before and "
        "after, k candidates",
        "end",
    ),
    "known_gained_beyond_chance": Figure(
        "known gained beyond chance",
        "share",
        "known gained, minus (1 - a)(1 - a') / (k - 1), floor 0",
        "end",
    ),
    "leakage": Figure(
        "leakage",
        "probability",
        "mean rise over row 0 of P(new) after T, on validation items that name no world",
        "end",
    ),
    "neighbour_kl": Figure(
        "neighbour KL",
        "nats",
        "mean KL(base || now) of the token after a neighbour's prompt, after T",
        "end",
    ),
}


def transitions(before: Iterable[bool], after: Iterable[bool]) -> tuple[int, int]:
    """Numbers of items that went 1 -> 0 and 0 -> 1 (Harmon et al. 2025, arXiv 2510.17776)."""
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


def by_item(
    records: list[Record], kinds: Iterable[str], row: int
) -> dict[tuple[str, int, int], Record]:
    """Records of a row by kind, task and number of the item."""
    found = {}
    for kind in kinds:
        for record in select(records, kind, row=row):
            found[record["kind"], record["task"], record["item"]] = record
    return found


def paired(
    records: list[Record], kinds: Iterable[str], rows: tuple[int, int]
) -> list[tuple[Record, Record]]:
    """The two records of each item that both rows hold."""
    first = by_item(records, kinds, rows[0])
    second = by_item(records, kinds, rows[1])
    return [(first[key], second[key]) for key in first if key in second]


def learned_transitions(records: list[Record], num_tasks: int) -> tuple[int, int]:
    """Items in worlds that went 1 -> 0 and 0 -> 1 (exact match) from their task's row to row T."""
    end = by_item(records, [LEARNED], num_tasks)
    before = []
    after = []
    for record in after_own_task(records, LEARNED):
        last = end.get((LEARNED, record["task"], record["item"]))
        if last is not None:
            before.append(record["exact"])
            after.append(last["exact"])
    return transitions(before, after)


def leakage(records: list[Record], num_tasks: int) -> float:
    """Mean rise over row 0 of P(new) on items whose prompt names no invented world, after task T.

    Neighbours are left out: the new object of a task is the true answer of some of them.
    """
    pairs = paired(records, ("validation_out",), (0, num_tasks))
    return mean(
        exp(now["contrary"]) - exp(base["contrary"])
        for base, now in pairs
        if now["where"] in WORLDLESS
    )


def item_figures(
    records: list[Record], num_tasks: int, protocol: str = "sequential", chance: float = NAN
) -> dict[str, float]:
    """The figures of FIGURES; `chance` is that of guessing an item of KNOWN, NaN if unknown."""
    lost, gained = learned_transitions(records, num_tasks)
    pairs = paired(records, KNOWN, (0, num_tasks))
    before = [item_margin(base) > 0 for base, _ in pairs]
    after = [item_margin(now) > 0 for _, now in pairs]
    num_lost, num_gained = transitions(before, after)
    known_lost = num_lost / len(pairs) if pairs else NAN
    known_gained = num_gained / len(pairs) if pairs else NAN
    guessed = by_chance(mean(before), mean(after), chance)
    kls = [r["kl"] for r in select(records, "neighbour", row=num_tasks) if r.get("kl") is not None]
    values = {
        "items_lost": float(lost),
        "items_gained": float(gained),
        "known_lost": known_lost,
        "known_gained": known_gained,
        "known_lost_beyond_chance": float(np.maximum(known_lost - guessed, 0)),
        "known_gained_beyond_chance": float(np.maximum(known_gained - guessed, 0)),
        "leakage": leakage(records, num_tasks),
        "neighbour_kl": mean(kls),
    }
    return defined(values, FIGURES, protocol)


def nearest_distance(distance: int) -> int:
    """The entry of DISTANCES with the nearest ratio."""
    return min(DISTANCES, key=lambda d: abs(math.log(max(distance, 1) / d)))


def right_by_distance(records: Iterable[Record]) -> dict[int, float]:
    """Share of items right by distance to the words they ask about; items without one left out."""
    groups: dict[int, list[Record]] = {}
    for record in records:
        if record["tokens"] is not None:
            groups.setdefault(nearest_distance(record["tokens"]), []).append(record)
    return {distance: right(groups[distance]) for distance in sorted(groups)}


def by_distance(
    records: list[Record], num_tasks: int, protocol: str = "sequential"
) -> dict[str, dict[str, dict[int, float]]]:
    """Share right by distance, of items in worlds, after their own task and after T."""
    found = {}
    for kind in (LEARNED, "transfer_in"):
        found[kind] = {
            "own": right_by_distance(after_own_task(records, kind, protocol)),
            "end": right_by_distance(select(records, kind, row=num_tasks)),
        }
    return found
