"""Tables of arms: the one of the first screen, all figures, and curves over levels, tasks and lags.

Arms of single tasks and of streams have tables of their own.
"""

from collections.abc import Sequence

from dsa_sandbox.metrics import drift, forgetting, items, single, stability_gap, stream, transfer
from dsa_sandbox.metrics.arm import COSTS, FIGURES
from dsa_sandbox.metrics.figure import Unit
from dsa_sandbox.metrics.single import not_reached
from dsa_sandbox.report.looks import Look, looks_of
from dsa_sandbox.report.names import arm_name, distinct, diverged_remark, with_remarks
from dsa_sandbox.report.numbers import in_unit, percent, signed
from dsa_sandbox.report.sheets import Sheet
from dsa_sandbox.verdict.matching import EXPERIMENTS, Results, of_experiment

FIRST = {
    "single": (
        *("reached", "damage", "placebo_share"),
        *("level_near_in", "level_far_in", "level_out", "level_steps", "time_s"),
    ),
    "stream": (
        *("learned", "drift", "placebo_share", "lost"),
        *("own_near_in", "own_far_in", "own_out", "steps", "time_s"),
    ),
}
OPTIONAL = ("placebo_share",)  # not a column of the first table where no arm has it
SIGNED = ("damage", "placebo_damage", "drift", "lost", "heldout_dnll", "log_odds_fall", "bwt")
MORE = {  # tables of --all by title
    "Single tasks": single.FIGURES,
    "Discrimination": stream.FIGURES,
    "Forgetting": forgetting.FIGURES,
    "Learning": transfer.FIGURES | stability_gap.FIGURES,
    "Items": items.FIGURES,
    "Drift from the base": drift.FIGURES,
    "Costs": COSTS,
}
NOT_REACHED = "not reached"


def by_architecture(arms: Results) -> Results:
    """The arms grouped by architecture, otherwise in their order."""
    archs = list(dict.fromkeys(figures["arch"] for figures in arms.values()))
    return dict(sorted(arms.items(), key=lambda entry: archs.index(entry[1]["arch"])))


def labels(arms: Results) -> dict[str, str]:
    """The name of each arm in tables, by run."""
    names = [arm_name(figures) for figures in arms.values()]
    seeds = [figures["seed"] for figures in arms.values()]
    return dict(zip(arms, distinct(names, list(arms), seeds)))


def looks(arms: Results) -> dict[str, Look]:
    """The look of each arm by run; those of single tasks and of streams have one beside another."""
    found: dict[str, Look] = {}
    for experiment in EXPERIMENTS:
        these = of_experiment(arms, experiment)
        pairs = [(figures["arch"], figures["strategy"]) for figures in these.values()]
        found |= dict(zip(these, looks_of(pairs)))
    return found


def row_names(arms: Results) -> dict[str, str]:
    """The labels with the marks of the charts, and a remark on arms that have diverged."""
    found = labels(arms)
    marks = looks(arms)
    for run, figures in arms.items():
        if figures["diverged_after"] is not None:
            remark = diverged_remark(figures["diverged_after"])
            found[run] = with_remarks(found[run], [remark])
        found[run] = f"{marks[run].mark} {found[run]}"
    return found


def formatted(key: str, value: float | None) -> str:
    """A figure in its unit, with a sign where the sign matters."""
    unit = FIGURES[key].unit
    if key in SIGNED and unit != "share":
        return signed(value, 3 if unit == "nats per token" else 2)
    return in_unit(value, unit)


def cell(key: str, figures: dict[str, float]) -> str:
    """A figure of an arm as its column shows it."""
    if key == "damage" and not_reached(figures):
        return NOT_REACHED
    return formatted(key, figures[key])


def has(key: str, experiment: str) -> bool:
    """Whether arms of an experiment can have a figure."""
    if experiment == "single":
        return FIGURES[key].needs == "task" and key not in ("learned", "overshoot")
    return key not in single.FIGURES or key == "placebo_share"


def arm_sheet(title: str, arms: Results, keys: Sequence[str]) -> Sheet:
    """A row for each arm with these figures."""
    rows = []
    for run, name in row_names(arms).items():
        rows.append((name, *(cell(key, arms[run]) for key in keys)))
    return Sheet(title, ["arm", *(FIGURES[key].name for key in keys)], rows)


def first_sheet(arms: Results, experiment: str) -> Sheet:
    """The table of the first screen."""
    keys = []
    for key in FIRST[experiment]:
        if key in OPTIONAL and all(cell(key, arm) == "-" for arm in arms.values()):
            continue
        keys.append(key)
    return arm_sheet("", arms, keys)


def all_sheets(arms: Results, experiment: str) -> tuple[list[Sheet], list[str]]:
    """A table for each group of figures, and the names of figures that no arm has."""
    sheets = []
    absent = []
    for title, figures in MORE.items():
        keys = []
        for key in figures:
            if key in FIRST[experiment] or not has(key, experiment):
                continue
            if all(cell(key, arm) == "-" for arm in arms.values()):
                absent.append(FIGURES[key].name)
            else:
                keys.append(key)
        if keys:
            sheets.append(arm_sheet(title, arms, keys))
    return sheets, absent


def levels_of(arms: Results) -> list[str]:
    """The levels at which all arms of single tasks have figures."""
    first, *rest = [list(figures["by_level"]) for figures in arms.values()]
    return [level for level in first if all(level in other for other in rest)]


def damage_sheet(arms: Results) -> Sheet:
    """Damage of each arm at each level."""
    levels = levels_of(arms)
    rows = []
    for run, name in row_names(arms).items():
        cells = [arms[run]["by_level"][level] for level in levels]
        rows.append((name, *(damage_cell(values) for values in cells)))
    return Sheet("", ["damage at level", *levels], rows)


def damage_cell(values: dict[str, float]) -> str:
    """A median damage in nats, or the words `not reached`."""
    return NOT_REACHED if not_reached(values) else signed(values["damage"], 3)


def level_sheets(arms: Results) -> list[Sheet]:
    """Tasks that reach each level, steps and tokens to it, parts there; damage of every task."""
    levels = levels_of(arms)
    sheets = []
    for title, key in (
        ("Tasks that reach a level", "reached"),
        ("Steps to a level (median)", "steps"),
        ("Tokens to a level (median)", "tokens"),
        ("Near-in at a level (median)", "near_in"),
        ("Far-in at a level (median)", "far_in"),
        ("Out at a level (median)", "out"),
        ("Transfer at a level (median)", "transfer"),
    ):
        rows = []
        for run, name in row_names(arms).items():
            values = [arms[run]["by_level"][level][key] for level in levels]
            rows.append((name, *(level_cell(key, value) for value in values)))
        sheets.append(Sheet(title, ["arm", *levels], rows))
    rows = []
    most = max(figures["tasks"] for figures in arms.values())
    for run, name in row_names(arms).items():
        damages = single.per_task(arms[run], arms[run]["level"]).tolist()
        shown = [damage_of_task(value) for value in damages]
        rows.append((name, *shown, *[""] * (most - len(shown))))
    numbers = [str(number) for number in range(1, most + 1)]
    title = "Damage of each task (at the level; never: not reached)"
    return [*sheets, Sheet(title, ["arm", *numbers], rows)]


def level_cell(key: str, value: float) -> str:
    """A figure at a level."""
    if key == "reached":
        return percent(value)
    units: dict[str, Unit] = {"steps": "steps", "tokens": "count"}
    return in_unit(value, units.get(key, "probability"))


def damage_of_task(value: float) -> str:
    """Damage of one task."""
    return "never" if value == float("inf") else signed(value, 3)


def lag_sheets(arms: Results) -> list[Sheet]:
    """Discrimination by the number of tasks learned since; none where no arm has two rows."""
    longest = max(len(figures["discrimination_by_lag"]) for figures in arms.values())
    if longest < 2:
        return []
    rows = []
    for run, name in row_names(arms).items():
        values = [in_unit(v, "probability") for v in arms[run]["discrimination_by_lag"]]
        rows.append((name, *values, *["-"] * (longest - len(values))))
    heads = ["arm", *(str(lag) for lag in range(longest))]
    return [Sheet("Discrimination by tasks learned since", heads, rows)]


def formula_sheet() -> Sheet:
    """Name, formula and unit of every figure, a row each."""
    rows = [(one.name, f"{one.formula} [{one.unit}]") for one in FIGURES.values()]
    return Sheet("", ["figure", "formula [unit]"], rows, words=[1])
