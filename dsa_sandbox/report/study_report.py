"""The report of a study: arms, verdicts and one example first, then what stands behind them.

Everything is a sheet, a paragraph or a panel, from which a terminal and a Markdown page are written
alike. Elapsed times stand in one paragraph: all else is the same whatever machine made the cells.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dsa_sandbox.registry import claims
from dsa_sandbox.report import forest
from dsa_sandbox.report.example import Example, example, lines
from dsa_sandbox.report.numbers import duration, number, percent, signed
from dsa_sandbox.report.panels import Interval, Panel
from dsa_sandbox.report.sheets import Sheet, cell
from dsa_sandbox.report.wrapping import folded
from dsa_sandbox.study.records import Record
from dsa_sandbox.verdict.claim import Finding
from dsa_sandbox.verdict.evidence import Estimate
from dsa_sandbox.verdict.judge import ArmMeans, Judgement

SHOWN = (("dsa", "acft"), ("dense", "ewc"), ("dense", "sgd"))  # arms of the example


class Study(NamedTuple):
    """What a report is made of."""

    name: str
    about: Mapping[str, Any]  # content of the study file, its level and hash
    judgement: Judgement
    records: Sequence[Record]
    failures: Mapping[str, str]  # why a cell has failed, by label
    deviations: Sequence[Mapping[str, Any]]  # `what` has changed after a first result


class Line(NamedTuple):
    """One line of a terminal, cut where it is too wide: the whole of it stands further down."""

    text: str


Piece = str | Line | Sheet | Panel


class Part(NamedTuple):
    """A section: a title (empty on the first screen), and what stands below it."""

    title: str
    body: Sequence[Piece]


def parts(study: Study) -> list[Part]:
    """The sections of a report in their order; the first is the first screen."""
    told = study.judgement
    plain = [one for one in told.arms if not one.key.variant]
    others = [one for one in told.arms if one.key.variant]
    found = [
        Part("", [heading(study), arm_sheet(plain), *claim_lines(told), *example_lines(study)]),
        Part("Claims", [text for one in told.findings for text in about_claim(one)]),
        Part("Effects", panels(told)),
        Part("Falsifiers", [falsifier_sheet(told)]),
    ]
    if others:
        found.append(Part("Arms with other settings", [arm_sheet(others)]))
    notes = [*exclusion_lines(told), *deviation_lines(study), *failure_lines(study)]
    if notes:
        found.append(Part("Exclusions, deviations and failures", notes))
    return [*found, Part("Elapsed times", [times(told)])]


def text(study: Study, *, width: int, unicode: bool = True) -> str:
    """The report for a terminal."""
    sections = []
    for part in parts(study):
        body = [drawn(one, width, unicode) for one in part.body]
        gap = "\n" if part.title == "" else "\n\n"
        title = [f"{part.title}\n{'-' * len(part.title)}"] if part.title else []
        sections.append("\n".join([*title, gap.join(body)]))
    return "\n\n".join(sections)


def drawn(one: Piece, width: int, unicode: bool) -> str:
    """One piece of a section for a terminal."""
    if isinstance(one, Line):
        return one.text if len(one.text) <= width else one.text[: width - 3].rstrip() + "..."
    if isinstance(one, Sheet):
        return one.text(width)
    if isinstance(one, Panel):
        return forest.text_of(one, width=width, unicode=unicode)
    return folded(one, width)


def markdown(study: Study) -> str:
    """The report as a Markdown page; panels are code blocks."""
    written = [f"# Report of the study {study.name}"]
    for part in parts(study):
        written += [f"## {part.title}"] if part.title else []
        for one in part.body:
            if isinstance(one, Sheet):
                written.append(one.markdown())
            elif isinstance(one, Panel):
                written.append(f"```\n{forest.text_of(one, width=100)}\n```")
            else:
                words = one.text if isinstance(one, Line) else one
                written += [cell(line) for line in words.splitlines()]
    return "\n\n".join(written) + "\n"


# --- the first screen -----------------------------------------------------------------------------


def heading(study: Study) -> str:
    """Which study it is, and how far it has come."""
    about, told = study.about, study.judgement
    asked = len(about["seeds"]) - len(told.excluded)
    kind = "confirmatory" if told.confirmatory else "exploratory"
    tasks = f"{about['tasks']} tasks ({about['single_tasks']} singly)"
    return (
        f"Study {study.name} ({kind}): {len(told.seeds)} of {asked} seeds, {about['preset']}, "
        f"{tasks}, level {about['level']:g}.\n"
        "Damage and drift in nats per token; ± half a 95 % interval of Student's t."
    )


def arm_sheet(arms: Sequence[ArmMeans]) -> Sheet:
    """A row for each arm: single tasks, then the stream; means over seeds."""
    names = dict.fromkeys(name_of(one) for one in arms)
    rows = []
    for name in names:
        of = {one.key.experiment: one for one in arms if name_of(one) == name}
        single, stream = of.get("single"), of.get("stream")
        rows.append(
            (
                name,
                share(single, "reached"),
                with_interval(single, "damage", 3),
                share(single, "placebo_share"),
                share(stream, "learned"),
                with_interval(stream, "drift", 2),
                with_interval(stream, "lost", 2),
            )
        )
    heads = ("arm", "reached", "damage", "placebo", "learned", "drift", "lost")
    return Sheet("", heads, rows)


def name_of(arm: ArmMeans) -> str:
    """An arm's name, the same for both experiments; a variant by its values."""
    variant = ", ".join(part.partition(".")[2] for part in arm.key.variant.split(", ") if part)
    return " ".join([arm.key.arch, arm.key.strategy, *([f"({variant})"] if variant else [])])


def share(arm: ArmMeans | None, key: str) -> str:
    """A mean share as a percentage."""
    return percent(arm.figures[key].mean) if arm and key in arm.figures else "-"


def with_interval(arm: ArmMeans | None, key: str, digits: int) -> str:
    """A mean, and half the width of its interval by Student's t where it has one."""
    if arm is None or key not in arm.figures:
        return "-"
    found: Estimate = arm.figures[key]
    half = (found.t_interval[1] - found.t_interval[0]) / 2
    return number(found.mean, digits) + (f" ±{half:.{digits}f}" if math.isfinite(half) else "")


def claim_lines(told: Judgement) -> list[Piece]:
    """Each claim with its verdict and why; primary claims first, whole and in words."""
    primary = [one for one in told.findings if claims[one.claim].family == "primary"]
    found: list[Piece] = []
    for one in primary:
        found.append(Line(f"{one.claim} {one.verdict}. {sentence(one.sentence)}"))
        found.append(sentence(f"  {why(one)}"))
    rest = [one for one in told.findings if one not in primary]
    return found + [Line(sentence(f"{one.claim} {one.verdict}: {why(one)}")) for one in rest]


def why(one: Finding) -> str:
    """The reason of a verdict; without a verdict, the component that is worst."""
    known = [part for part in one.components if part["n"]]
    if one.verdict != "exploratory" or not known:
        return one.why
    worst = max(known, key=lambda part: float(part["mean"]))
    most = "at worst " if len(known) > 1 else ""
    return f"{most}{worst['name']}: {signed(worst['mean'], 3)} {interval(worst)}"


def interval(part: Mapping[str, Any]) -> str:
    """The exact interval of a component in brackets, or that there is none."""
    low, high = part["interval"]
    if math.isfinite(low + high):
        return f"({between(low, high)})"
    return f"(no interval from {part['n']} seed{'s' if part['n'] != 1 else ''})"


def sentence(text: str) -> str:
    """The text with one full stop at its end."""
    return text.rstrip(".") + "."


def example_lines(study: Study) -> list[str]:
    """What three arms say to one probe, in words; nothing where no item fits the rule."""
    found = example_of(study.records)
    if found is None:
        return []
    seed, shown = found
    return lines(shown, seed)


def example_of(records: Sequence[Record]) -> tuple[int, Example] | None:
    """The first seed whose plain streams have an example, and the example."""
    streams = [one for one in records if one.cell.key and one.cell.key.experiment == "stream"]
    for seed in sorted({one.cell.seed for one in streams}):
        arms = {}
        for record in streams:
            key = record.cell.key
            if record.cell.seed == seed and key and not (key.placebo or key.variant):
                arms[key.arch, key.strategy] = record
        chosen = {f"{a} {s}": arms[a, s] for a, s in SHOWN if (a, s) in arms}
        if not chosen:
            continue
        tasks = min(int(one.figures["tasks"]) for one in chosen.values())
        found = example({name: one.items for name, one in chosen.items()}, tasks)
        if found is not None:
            return seed, found
    return None


# --- what stands behind it ------------------------------------------------------------------------


def about_claim(one: Finding) -> list[Piece]:
    """A claim in words, its verdict, and its components."""
    p = [] if one.p is None or "p = " in one.why else [f"p = {one.p:.4f}"]
    p += [] if one.p_adjusted is None else [f"{one.p_adjusted:.4f} after Holm"]
    error = one.resampled_error
    p += [] if error is None else [f"error of a refutation in resampled studies {error:.3f}"]
    figures = f" ({'; '.join(p)})" if p else ""
    words = f"{one.claim}: {sentence(one.sentence)} {one.verdict.capitalize()}: {one.why}"
    found: list[Piece] = [sentence(f"{words}{figures}")]
    if one.components:
        found.append(component_sheet(one))
    return found


def component_sheet(one: Finding) -> Sheet:
    """The components of a claim: mean over seeds, intervals, and p."""
    rows = []
    for part in one.components:
        low, high = part["interval"]
        blocks = [f"{part['infinite']} at infinity"] if part.get("infinite") else []
        blocks += [f"{part['left_out']} left out"] if part.get("left_out") else []
        figures = [str(part["n"]), signed(part["mean"], 3), number(part["sd"], 3)]
        figures += [between(low, high), number(part["p"], 4)]
        name = part["name"].replace("] - [", "] -\n[")
        rows.append([name, *figures, ", ".join(blocks)])
    heads = ["component", "seeds", "mean", "SD", "95 % interval", "p", "blocks"]
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return Sheet("", heads, rows)


def between(low: float, high: float) -> str:
    """An interval, `none` where so few seeds have none."""
    return f"{low:+.3f} to {high:+.3f}" if math.isfinite(low + high) else "none"


def panels(told: Judgement) -> list[Piece]:
    """A forest plot for each outcome and smallest effect."""
    groups: dict[tuple[str, str, float], list[Interval]] = {}
    for one in told.findings:
        for part in one.components:
            low, high = part["interval"]
            if part["n"] and math.isfinite(low + high) and part.get("smallest"):
                name = f"{one.claim} {part['name'].partition(', ')[2] or part['name']}"
                row = Interval(name, part["mean"], low, high, part["p"], "")
                key = part["outcome"], part["unit"], part["smallest"]
                groups.setdefault(key, []).append(row)
    found: list[Piece] = []
    for (outcome, unit, smallest), rows in groups.items():
        label = f"{outcome}, {unit}; below zero the first arm forgets less" if unit else outcome
        found.append(
            Panel("forest", outcome.capitalize(), label, "", intervals=rows, smallest=smallest)
        )
    return found or ["No contrast has an interval yet: an exact one needs 6 seeds."]


def falsifier_sheet(told: Judgement) -> Sheet:
    """Every falsifier: whether it holds, and why."""
    rows = [(one.name, one.word, f"{one.sentence}: {one.line}") for one in told.falsifiers]
    return Sheet("", ("falsifier", "", "what it says"), rows, words=(1, 2))


def exclusion_lines(told: Judgement) -> list[str]:
    """What the study leaves out, and why."""
    seeds = [f"Seed {seed} is excluded: {why}" for seed, why in told.excluded.items()]
    return [*told.exclusions, *seeds]


def deviation_lines(study: Study) -> list[str]:
    """What was changed after the first result."""
    return [f"Changed after a first result: {one['what']}" for one in study.deviations]


def failure_lines(study: Study) -> list[str]:
    """Cells that have failed; they count as not reached."""
    return [f"Failed: {label}: {why}" for label, why in sorted(study.failures.items())]


def times(told: Judgement) -> str:
    """Mean time of each arm."""
    found: dict[str, list[str]] = {}
    for one in told.arms:
        if "time_s" in one.figures and one.figures["time_s"].n:
            mean = duration(one.figures["time_s"].mean)
            found.setdefault(name_of(one), []).append(f"{one.key.experiment} {mean}")
    listed = [f"{name} {', '.join(some)}" for name, some in found.items()]
    return f"Mean of an arm: {'; '.join(listed)}." if listed else "No arm is finished."


def as_json(study: Study) -> dict[str, Any]:
    """The report as plain values; elapsed times stand in the figures of the arms."""
    found = example_of(study.records)
    shown = None
    if found is not None:
        seed, one = found
        shown = {"seed": seed, "lines": lines(one, seed)}
    return {
        "study": study.name,
        "hash": study.about["hash"],
        "level": study.about["level"],
        **study.judgement.as_json(),
        "example": shown,
        "deviations": [dict(one) for one in study.deviations],
        "failures": dict(study.failures),
    }
