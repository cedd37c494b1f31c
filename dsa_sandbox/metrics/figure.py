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
Needs = Literal["sequential", "end", "task"]
DEFINED = {"joint": ("end", "task"), "independent": ("task",)}  # other protocols define all figures


class Figure(NamedTuple):
    """Description of one figure.

    Its key in `--json` is the name in lower case with underscores, `held-out` in one word; a key of
    time or memory ends with its unit.

    `needs` names the protocols that define the figure: `sequential`, tasks learned one by one;
    `end`, any network that has met all tasks; `task`, tasks measured right after each was learned.
    """

    name: str
    unit: Unit
    formula: str
    needs: Needs = "sequential"


def defined(
    values: Mapping[str, float], figures: Mapping[str, Figure], protocol: str
) -> dict[str, float]:
    """The values, NaN where the protocol does not define a figure.

    `joint` learns all tasks at once (rows 0 and T); `independent` learns each task from the base
    (row j + 1 measures task j alone).
    """
    allowed = DEFINED.get(protocol)
    found = dict(values)
    for key in found:
        if allowed is not None and figures[key].needs not in allowed:
            found[key] = NAN
    return found
