"""The end of `eval` and `run`: one table of arms with three remarks, and the rest by --all."""

from typing import Any

from dsa_sandbox.metrics import drift, forgetting, items, stability_gap, transfer
from dsa_sandbox.metrics.arm import COSTS, FIGURES
from dsa_sandbox.report import summaries
from dsa_sandbox.report.names import arm_name, distinct, diverged_remark, with_remarks
from dsa_sandbox.report.numbers import in_unit, number, signed
from dsa_sandbox.report.wrapping import folded, plain, rendered
from dsa_sandbox.verdict.contrasts import SEEDS_NEEDED, Contrast, all_contrasts
from dsa_sandbox.verdict.matching import (
    EQUAL_BASES,
    LEAST_LEARNED,
    LIMITS,
    Pair,
    Reason,
    Results,
    all_pairs,
    arms_of,
    bases_of,
    comparable,
    streams_and_seeds,
)
from dsa_sandbox.verdict.summary import statistics_of

FIRST = ("learned", "heldout_dnll", "final_exact_match", "steps", "time_s")
SIGNED = ("heldout_dnll", "log_odds_fall", "bwt")  # figures whose sign matters most
MORE = {  # tables of --all by title
    "Forgetting": forgetting.FIGURES,
    "Learning": transfer.FIGURES | stability_gap.FIGURES,
    "Items": items.FIGURES,
    "Drift from the base": drift.FIGURES,
    "Costs": COSTS,
}
FEW = 3  # pairs of arms that a sentence lists by name
GAP = 2  # columns between the columns of a table whose heads are several words


def screen(
    found: Results,
    *,
    width: int,
    everything: bool = False,
    formulas: bool = False,
    chart: str = "",
) -> str:
    """The first screen; with `everything` also contrasts, all figures and their formulas.

    A `chart` stands below the table.
    """
    parts = []
    for name, figures in found.items():
        if figures["kind"] == "base":
            parts.append(folded(summaries.base(name, figures), width))
        elif figures["kind"] == "probes":
            parts.append(folded(summaries.probes(name, figures), width))
    arms = by_architecture(arms_of(found))
    if arms:
        parts.append(first_table(arms, width))
        if chart:
            parts.append(chart)
        remarks = [bases_line(arms), comparison_sentence(arms)]
        if not everything:
            remarks.append("Contrasts, all other figures and their formulas: add --all.")
        parts.append(folded("\n".join(remarks), width))
    if everything and arms:
        parts += all_tables(arms, width)
        parts += contrast_parts(arms, width)
        parts += statistic_tables(arms, width)
    if formulas or (everything and arms):
        parts.append(formula_table(width))
    return "\n\n".join(parts)


def by_architecture(arms: Results) -> Results:
    """The arms grouped by architecture, otherwise in their order."""
    archs = list(dict.fromkeys(figures["arch"] for figures in arms.values()))
    return dict(sorted(arms.items(), key=lambda entry: archs.index(entry[1]["arch"])))


def labels(arms: Results) -> dict[str, str]:
    """The name of each arm in tables, by run."""
    names = [arm_name(figures) for figures in arms.values()]
    seeds = [figures["seed"] for figures in arms.values()]
    return dict(zip(arms, distinct(names, list(arms), seeds)))


def row_names(arms: Results) -> dict[str, str]:
    """The labels, with a remark on arms that have diverged."""
    found = labels(arms)
    for run, figures in arms.items():
        if figures["diverged_after"] is not None:
            remark = diverged_remark(figures["diverged_after"])
            found[run] = with_remarks(found[run], [remark])
    return found


def cell(key: str, value: float | None) -> str:
    """A figure as its column shows it."""
    unit = FIGURES[key].unit
    if key in SIGNED and unit != "share":
        return signed(value, 3 if unit == "nats per token" else 2)
    return in_unit(value, unit)


def arm_table(arms: Results, keys: list[str], width: int) -> str:
    """A row for each arm with these figures, an empty line between architectures."""
    drawn = plain(GAP)
    drawn.add_column("arm", no_wrap=True)
    for key in keys:
        drawn.add_column(FIGURES[key].name, justify="right", no_wrap=True)
    previous = None
    for run, name in row_names(arms).items():
        figures = arms[run]
        if previous not in (None, figures["arch"]):
            drawn.add_row()
        previous = figures["arch"]
        drawn.add_row(name, *(cell(key, figures[key]) for key in keys))
    return rendered(drawn, width)


def first_table(arms: Results, width: int) -> str:
    """The table of the first screen."""
    return arm_table(arms, list(FIRST), width)


def all_tables(arms: Results, width: int) -> list[str]:
    """A table for each group of figures; figures that no arm has are named below them."""
    parts = []
    absent = []
    for title, figures in MORE.items():
        keys = []
        for key in figures:
            if key in FIRST:
                continue
            if all(cell(key, arm[key]) == "-" for arm in arms.values()):
                absent.append(FIGURES[key].name)
            else:
                keys.append(key)
        if keys:
            parts.append(f"{title}\n\n{arm_table(arms, keys, width)}")
    if absent:
        parts.append(folded(f"Not measured in these arms: {', '.join(absent)}.", width))
    return parts


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


def comparison_sentence(arms: Results) -> str:
    """One sentence on which arms may not be compared, and why."""
    if len(streams_and_seeds(arms)) > 1:
        return (
            "No two arms may be compared: they are of several streams or seeds, and seeds are not "
            "put together here."
        )
    pairs = all_pairs(arms)
    if not pairs:
        return "Nothing may be compared: there are no two arms (bounds do not count)."
    names = labels(arms)
    alike = [pair for pair in pairs if pair.matching.equal]
    unlike = [pair for pair in pairs if not pair.matching.equal]
    luck = "one seed decides nothing"
    if not unlike:
        return f"All arms learned equally, but their differences may be luck: {luck}."
    why = f"learned unequally ({topics(unlike)}), and {luck}"
    if not alike:
        return f"No two arms may be compared: they {why}."
    if len(alike) <= FEW:
        return f"Only {listed_pairs(alike, names)} may be compared; all other pairs {why}."
    if len(unlike) <= FEW:
        return f"Do not compare {listed_pairs(unlike, names)}: they {why}."
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
    return ", ".join(found + [FIGURES[key].name for key in LIMITS if key in missed])


def contrast_parts(arms: Results, width: int) -> list[str]:
    """The planned contrasts as a table, how to read them, and the arms that none of them uses."""
    parts = []
    contrasts = all_contrasts(arms)
    if contrasts:
        parts.append(f"Contrasts\n\n{contrast_table(contrasts, width)}")
        parts.append(folded(reading(contrasts), width))
    parts += [folded(reason, width) for reason in comparable(arms).left_out]
    return parts


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


def contrast_table(contrasts: list[Contrast], width: int) -> str:
    """A row for each contrast: claim, arms, both outcomes, and what makes learning unequal."""
    drawn = plain(GAP)
    drawn.add_column("claim", no_wrap=True)
    drawn.add_column("contrast", no_wrap=True)
    for key in ("heldout_dnll", "log_odds_fall"):
        drawn.add_column(FIGURES[key].name, justify="right", no_wrap=True)
    drawn.add_column("learning differs in", no_wrap=True)
    for contrast in contrasts:
        title = contrast.title.replace("] - [", "] -\n[")
        values = [cell(key, value) for key, value in contrast.values.items()]
        drawn.add_row(contrast.claim, title, *values, largest(contrast.matching.reasons))
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


def reading(contrasts: list[Contrast]) -> str:
    """How to read the table of contrasts, and why none of them decides anything."""
    limits = [f"{FIGURES[key].name} {limit}" for key, limit in LIMITS.items()]
    needed: dict[int, list[str]] = {}
    for claim in dict.fromkeys(contrast.claim for contrast in contrasts):
        needed.setdefault(SEEDS_NEEDED[claim], []).append(claim)
    seeds = [f"{', '.join(claims)}: {number}" for number, claims in sorted(needed.items())]
    return (
        "A contrast is first - second, in nats: below zero, the first arm forgets less. Equal "
        f"learning allows differences up to: {', '.join(limits)}. All contrasts are undecided: "
        f"there is one seed, and an exact test needs more ({'; '.join(seeds)})."
    )


def formula_table(width: int) -> str:
    """Name, formula and unit of every figure, a row each."""
    drawn = plain(GAP)
    drawn.add_column("figure", no_wrap=True)
    drawn.add_column("formula [unit]")
    for figure in FIGURES.values():
        drawn.add_row(figure.name, f"{figure.formula} [{figure.unit}]")
    return rendered(drawn, width)
