"""The entry that describes a figure of an arm: name, unit, formula, and where it is defined.

metrics/arm.py joins all entries into one table, FIGURES. Tables, `--json`, `--formulas` and
messages take names, units and formulas from there, so that a figure has one name everywhere.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

NAN = float("nan")
Unit = Literal[
    "share",
    "probability",
    "ratio",
    "nats",
    "nats per token",
    "bits per byte",
    "steps",
    "count",
    "s",
    "MB",
]
Needs = Literal["sequence", "end", "task"]
DEFINED = {"together": ("end", "task"), "apart": ("task",)}  # other courses define all figures


class Figure(NamedTuple):
    """Description of one figure; its key in `--json` is the name in lower case with underscores.

    `needs` names the courses that define the figure: `sequence`, tasks learned one after another;
    `end`, any network that has met all tasks; `task`, tasks measured right after each was learned.
    """

    name: str
    unit: Unit
    formula: str
    needs: Needs = "sequence"


def defined(
    values: Mapping[str, float], figures: Mapping[str, Figure], course: str
) -> dict[str, float]:
    """The values, NaN where the course does not define a figure.

    `together` learns all tasks at once (rows 0 and T); `apart` learns each task from the base
    (row j + 1 measures task j alone).
    """
    allowed = DEFINED.get(course)
    found = dict(values)
    for key in found:
        if allowed is not None and figures[key].needs not in allowed:
            found[key] = NAN
    return found
