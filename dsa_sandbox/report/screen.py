"""The end of `eval` and `run`: a table of arms for each experiment, remarks; the rest by --all."""

from typing import Any

from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.report import arm_tables, summaries
from dsa_sandbox.report.arm_tables import by_architecture, formatted, labels
from dsa_sandbox.report.numbers import number
from dsa_sandbox.report.wrapping import folded, plain, rendered
from dsa_sandbox.verdict.contrasts import (
    DECIDED_BY,
    OUTCOMES,
    SEEDS_NEEDED,
    Contrast,
    all_contrasts,
)
from dsa_sandbox.verdict.matching import (
    EQUAL_BASES,
    EXPERIMENTS,
    LEAST_LEARNED,
    LEAST_REACHED,
    LIMITS,
    Pair,
    Reason,
    Results,
    all_pairs,
    arms_of,
    bases_of,
    comparable,
    of_experiment,
    streams_and_seeds,
)
from dsa_sandbox.verdict.summary import statistics_of

FEW = 3  # pairs of arms that a sentence lists by name
GAP = 2  # spaces between two columns of a table, where heads have several words


def screen(
    found: Results,
    *,
    width: int,
    everything: bool = False,
    formulas: bool = False,
    chart: str = "",
) -> str:
    """The first screen; with `everything` also contrasts, all figures and their formulas.

    A `chart` stands above the tables, which are what a terminal still shows at the end.
    """
    parts = [chart] if chart else []
    for name, figures in found.items():
        if figures["kind"] == "base":
            parts.append(folded(summaries.base(name, figures), width))
        elif figures["kind"] == "probes":
            parts.append(folded(summaries.probes(name, figures), width))
    arms = by_architecture(arms_of(found))
    here = [one for one in EXPERIMENTS if shown(arms, one)]
    for experiment in here:
        parts += first_parts(shown(arms, experiment), experiment, width, alone=len(here) == 1)
    if here:
        remarks = [bases_line(arms)]
        remarks += comparison_sentences(arms, here)
        if not everything:
            remarks.append("Contrasts, all other figures and their formulas: add --all.")
        parts.append(folded("\n".join(remarks), width))
    if everything and here:
        for experiment in here:
            parts += more_parts(shown(arms, experiment), experiment, width, alone=len(here) == 1)
        parts += contrast_parts(arms, width)
        parts += statistic_tables(arms, width)
    if formulas or (everything and here):
        parts.append(arm_tables.formula_table(width))
    return "\n\n".join(parts)


def shown(arms: Results, experiment: str) -> Results:
    """The arms of an experiment that have a row: a placebo stands beside its arm."""
    found = of_experiment(arms, experiment)
    return {name: arm for name, arm in found.items() if "placebo_of" not in arm}


def first_parts(arms: Results, experiment: str, width: int, *, alone: bool) -> list[str]:
    """The part of an experiment in the first screen; with damage by level if it is the only one."""
    table = arm_tables.first_table(arms, experiment, width)
    parts = [f"{folded(heading(arms, experiment, alone=alone), width)}\n{table}"]
    if experiment == "single" and alone:
        parts.append(arm_tables.damage_by_level(arms, width))
    return parts


MEANING = {
    "single": "Damage: rise of held-out NLL when a task has been learned so far.",
    "stream": "Drift: rise of held-out NLL in the second half; lost: fall of discrimination 1 to 3 "
    "tasks later.",
}


def heading(arms: Results, experiment: str, *, alone: bool) -> str:
    """Text above the table: tasks, level, and the outcomes' definitions if there is room."""
    levels = " or ".join(dict.fromkeys(f"{figures['level']:g}" for figures in arms.values()))
    tasks = " or ".join(dict.fromkeys(str(figures["tasks"]) for figures in arms.values()))
    if experiment == "single":
        done = f"Single tasks ({tasks}, each from the base) at discrimination {levels}, medians."
        return f"{done} {MEANING[experiment]}" if alone else done
    fixed = any(figures["terms"].get("finetune.stop") == "fixed" for figures in arms.values())
    ends = "after fixed steps" if fixed else f"at discrimination {levels}"
    done = f"Stream of {tasks} tasks, each ending {ends}."
    return f"{done} {MEANING[experiment]}" if alone else done


def more_parts(arms: Results, experiment: str, width: int, *, alone: bool) -> list[str]:
    """Further tables of an experiment, for --all."""
    if experiment == "single":
        return [
            *([] if alone else [arm_tables.damage_by_level(arms, width)]),
            *arm_tables.level_tables(arms, width),
            *arm_tables.all_tables(arms, experiment, width),
        ]
    lags = arm_tables.lag_table(arms, width)
    return [*arm_tables.all_tables(arms, experiment, width), *([lags] if lags else [])]


def bases_line(arms: Results) -> str:
    """Whether the bases are of equal quality, with their held-out NLL."""
    bases = bases_of(arms)
    values = []
    for arch, nll in bases.nll.items():
        several = f" to {max(nll):.4f}" if len(nll) > 1 else ""
        values.append(f"{arch} {min(nll):.4f}{several}")
    figures = f"held-out NLL {', '.join(values)}"
    if bases.difference is None:
        return f"Bases: {figures}; no other architecture to compare."
    figures += f" ({bases.difference:.4f} apart, limit {EQUAL_BASES})"
    if bases.equal:
        return f"Bases equal: {figures}."
    return f"Bases NOT equal: {figures}; do not compare arms across architectures."


def comparison_sentences(arms: Results, experiments: list[str]) -> list[str]:
    """A sentence on each experiment's comparisons, or one on both where it is the same."""
    found: dict[str, list[str]] = {}
    for experiment in experiments:
        name = "Single tasks" if experiment == "single" else "Stream"
        found.setdefault(comparison_sentence(of_experiment(arms, experiment)), []).append(name)
    return [f"{' and '.join(names).capitalize()}: {text}" for text, names in found.items()]


def comparison_sentence(of_these: Results) -> str:
    """One sentence on which arms of an experiment may not be compared, and why."""
    if len(streams_and_seeds(of_these)) > 1:
        return (
            "arms of several streams or seeds are compared within each seed; means, intervals and "
            "p over seeds: add --all."
        )
    pairs = all_pairs(of_these)
    if not pairs:
        return "nothing may be compared: there are no two arms (bounds do not count)."
    names = labels(of_these)
    alike = [pair for pair in pairs if pair.matching.equal]
    unlike = [pair for pair in pairs if not pair.matching.equal]
    luck = "one seed decides nothing"
    if not unlike:
        return f"all arms learned equally, but their differences may be luck: {luck}."
    why = f"learned unequally ({topics(unlike)}), and {luck}"
    if not alike:
        return f"no two arms may be compared: they {why}."
    if len(alike) <= FEW:
        told = listed_pairs(alike, names)
        return f"only {told} may be compared; all other pairs {why}."
    if len(unlike) <= FEW:
        return f"do not compare {listed_pairs(unlike, names)}: they {why}."
    return f"{len(unlike)} of {len(pairs)} pairs of arms may not be compared: they {why}."


def listed_pairs(pairs: list[Pair], names: dict[str, str]) -> str:
    """The pairs by the names of their arms."""
    return " or ".join(f"{names[pair.first]} with {names[pair.second]}" for pair in pairs)


def topics(pairs: list[Pair]) -> str:
    """The conditions of equal learning that the pairs miss, each once."""
    missed = {reason.topic for pair in pairs for reason in pair.matching.reasons}
    found = []
    if "settings" in missed:
        found.append("other settings")
    if "learned" in missed:
        found.append(f"fewer than {LEAST_LEARNED:.0%} of tasks learned")
    if "reached" in missed:
        found.append(f"fewer than {LEAST_REACHED:.0%} of tasks reach the level")
    return ", ".join(found + [FIGURES[key].name for key in LIMITS if key in missed])


def contrast_parts(arms: Results, width: int) -> list[str]:
    """The planned contrasts as tables, how to read them, and the arms that none of them uses."""
    parts = []
    contrasts = all_contrasts(arms)
    for experiment in EXPERIMENTS:
        rows = [one for one in contrasts if DECIDED_BY[one.claim] == experiment]
        if rows:
            title = (
                "Contrasts of single tasks" if experiment == "single" else "Contrasts of streams"
            )
            parts.append(f"{title}\n\n{contrast_table(rows, OUTCOMES[experiment], width)}")
    if contrasts:
        parts.append(folded(READING, width))
    for experiment in EXPERIMENTS:
        parts += [folded(reason, width) for reason in comparable(arms, experiment).left_out]
    return parts


READING = (
    "A contrast is first - second: below zero, the first arm forgets less. Of single tasks it is "
    "the median, over the tasks that reach the level in all its arms, of the difference of damage; "
    "streams learned equally where their own discriminations differ by at most "
    f"{LIMITS['own_discrimination']}. All contrasts are undecided: there is one seed, and a "
    f"verdict needs {SEEDS_NEEDED}."
)


def statistic_tables(arms: Results, width: int) -> list[str]:
    """A table for each statistic that has rows; its columns are the keys of the first row."""
    parts = []
    for name, rows in statistics_of(arms).items():
        drawn = plain(GAP)
        for key in rows[0]:
            drawn.add_column(key.replace("_", " "), no_wrap=True)
        for row in rows:
            drawn.add_row(*(formatted_value(value) for value in row.values()))
        parts.append(f"{name.capitalize()}\n\n{rendered(drawn, width)}")
    return parts


def formatted_value(value: Any) -> str:
    """A value of a statistic's row as text."""
    return number(value, 3) if isinstance(value, float) else str(value)


def contrast_table(contrasts: list[Contrast], outcomes: tuple[str, ...], width: int) -> str:
    """A row for each contrast: claim, arms, outcomes, tasks, and what makes learning unequal."""
    drawn = plain(GAP)
    drawn.add_column("claim", no_wrap=True)
    drawn.add_column("contrast", no_wrap=True)
    for key in outcomes:
        drawn.add_column(FIGURES[key].name, justify="right", no_wrap=True)
    drawn.add_column("tasks", justify="right", no_wrap=True)
    drawn.add_column("learning differs in", no_wrap=True)
    for contrast in contrasts:
        title = contrast.title.replace("] - [", "] -\n[")
        values = [formatted(key, value) for key, value in contrast.values.items()]
        differs = largest(contrast.matching.reasons)
        drawn.add_row(contrast.claim, title, *values, str(contrast.tasks), differs)
    return rendered(drawn, width)


def largest(reasons: list[Reason]) -> str:
    """The largest difference for each condition that is missed; nothing at equal learning."""
    amounts: dict[str, float | None] = {}
    for reason in reasons:
        before = amounts.get(reason.topic)
        if before is None or (reason.difference or 0) > before:
            amounts[reason.topic] = reason.difference
    found = []
    for topic, amount in amounts.items():
        name = FIGURES[topic].name if topic in FIGURES else topic
        found.append(name if amount is None else f"{name} {amount:.2f}")
    return ", ".join(found)
