"""Tables and summaries as text: what a command says of its result."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dsa_sandbox.metrics.arm import FORMULAS
from dsa_sandbox.metrics.forgetting import DIVERGED
from dsa_sandbox.report.wrapping import folded, plain, rendered
from dsa_sandbox.verdict.contrasts import all_contrasts, comparable

Columns = dict[str, tuple[str, Callable[[float], str]]]
EQUAL_BASES = 0.02  # nats of held-out NLL


def number(value: float | None, digits: int = 2) -> str:
    """A figure with its sign left to right; `-` where there is none."""
    return shown(value, f".{digits}f")


def shown(value: float | None, form: str) -> str:
    """A figure in a form, `-` where there is none; of a diverged arm's, the size alone."""
    if value is None or math.isnan(value):
        return "-"
    return format(value, form) if abs(value) < 1e5 else format(value, f"{form[:-3]}.0e")


def ratio(value: float | None) -> str:
    """How many times as much; `>999` of an arm that has diverged."""
    return f">{DIVERGED:.0f}" if value is not None and value > DIVERGED else number(value)


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0%}" if abs(value) < 10 else ">999%" if value > 0 else "<-999%"


def parameters(figures: dict[str, Any]) -> str:
    """Both parameter tables by group, and how well they match."""
    table = plain()
    table.add_column("group")
    columns = list(figures["parameters"])
    for arch in columns:
        table.add_column(arch, justify="right")
    groups = list(dict.fromkeys(g for arch in columns for g in figures["parameters"][arch]))
    groups = [group for group in groups if group != "total"] + ["total"]
    for group in groups:
        counts = [figures["parameters"][arch].get(group) for arch in columns]
        table.add_row(group, *("" if count is None else f"{count:,}" for count in counts))
    widths = ", ".join(f"{arch} {width}" for arch, width in figures["ffn_width"].items())
    text = (
        f"feed-forward width: {widths}; totals differ by {figures['mismatch']:.2%}; "
        f"vocabulary {figures['vocabulary']}"
    )
    if figures.get("fact_stories"):
        share = figures["fact_stories"] / figures["train_documents"]
        text += f"; {figures['fact_stories']:,} stories with facts mixed in ({share:.0%})"
    return f"{rendered(table)}\n{text}"


def gate_text(gate: dict[str, Any]) -> str:
    """Whether worlds are worlds to a base."""
    if gate["right"] is None:
        return "worlds gate CLOSED: no rule of a practice world is one token here"
    state = "open" if gate["open"] else "CLOSED"
    return (
        f"worlds gate {state}: practice P(right) {gate['right']:.2f} (>= 0.80), "
        f"bleed {gate['bleed']:.2f} (<= 0.20)"
    )


def base(name: str, figures: dict[str, Any]) -> str:
    """What pre-training ended with."""
    pairs = ", ".join(
        f"{kind} {share:.2f} (bigram {figures['pairs_bigram'][kind]:.2f})"
        for kind, share in figures["pairs"].items()
    )
    valid = figures["valid"]
    lines = [
        f"{name}: held-out NLL {number(valid['nll'], 4)} nats/token, "
        f"{number(valid['bits_per_byte'], 4)} bits/byte",
        f"known facts {figures['known_facts']} of {figures['asked_facts']}; pairs: {pairs}",
        gate_text(figures["gate"]),
        f"a story: {figures['story']}",
    ]
    if figures.get("fact_stories"):
        share = figures["fact_stories"] / figures["train_documents"]
        lines.insert(1, f"fact stories in the training text: {share:.0%} of documents")
    return "\n".join(lines)


def stream(name: str, figures: dict[str, Any]) -> str:
    """What make-tasks found."""
    lines = [f"{name}: {figures['tasks']} tasks"]
    if "usable" in figures:
        lines.append(
            f"facts known by all bases: {figures['known_by_all']} of {figures['asked_facts']}; "
            f"{figures['usable']} may be tasks here, {figures['reused_facts']} used again"
        )
    lines.append(f"mean density K/t at answers: {figures['density']:.3f} (limit 0.25)")
    for base_name, row in figures.get("bases", {}).items():
        lines.append(f"{base_name}: knows {row['known_facts']}; {gate_text(row['gate'])}")
    return "\n".join(lines)


def arm(name: str, figures: dict[str, Any]) -> str:
    """What an arm ended with, in two lines."""
    return (
        f"{name}: learned {percent(figures['learned'])} of {figures['tasks']} tasks "
        f"({figures['capped']} capped), {number(figures['steps'], 0)} steps each\n"
        f"forgetting: Y {signed(figures['Y'], 3)} nats, Y2 {signed(figures['Y2'], 2)} nats; "
        f"exact match at the end {percent(figures['retention'])}"
    )


def signed(value: float | None, digits: int) -> str:
    """A figure with its sign; `-` where there is none."""
    return shown(value, f"+.{digits}f")


def formulas() -> dict[str, str]:
    """Each figure's formula by its key."""
    return {key: formula.text for key, formula in FORMULAS.items()}


def label(figures: dict[str, Any]) -> str:
    """How an arm is called: architecture and rule, with the optimiser where the rule hides it.

    `overwriting`: it saw no contrast stories (finetune.contrast=0).
    """
    arch, strategy, optimizer = (figures[key] for key in ("arch", "strategy", "optimizer"))
    sequential = f"sequential ({optimizer})" if strategy == "sgd" else strategy
    overwriting = f"{optimizer if strategy == 'sgd' else strategy}, overwriting"
    name = f"{arch} {overwriting if figures['overwriting'] else sequential}"
    diverged = figures.get("diverged_after")
    return name if diverged is None else f"{name} ({told_diverged(diverged)})"


def told_diverged(tasks: int) -> str:
    """What is said of an arm whose held-out perplexity had left all bounds by then."""
    return f"diverged after task {tasks}"


def told_apart(names: list[str], runs: list[str], seeds: list[int]) -> list[str]:
    """The names, with seeds where they differ, and the ends of runs' names where they are alike."""
    if len(set(seeds)) > 1:
        names = [f"{name} s{seed}" for name, seed in zip(names, seeds)]
    times = Counter(names)
    for length in (4, 8):  # of the identity, with what --force has put behind it
        short = rf"^.*-s\d+-([0-9a-f]{{{length}}})[0-9a-f]*"
        ends = [re.sub(short, r"\1", run) for run in runs]
        found = [f"{n} {end}" if times[n] > 1 else n for n, end in zip(names, ends)]
        if len(set(found)) == len(found):
            break
    return found


def contrasts(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The contrasts and what may be said of them, as plain values."""
    seeds = len({arm["seed"] for arm in results.values() if arm["kind"] == "arm"})
    return {
        "contrasts": all_contrasts(results),
        "left_out": comparable(results).left_out,
        "seeds": seeds,
        "verdict": "one seed decides nothing" if seeds == 1 else "seeds are not put together",
    }


COLUMNS: Columns = {  # of the first screen: forgetting
    "learned": ("learned", percent),
    "Y": ("Y", lambda v: number(v, 3)),
    "Y2": ("Y2", number),
    "retention": ("EM", percent),
    "kl": ("KL", number),
    "steps": ("steps", lambda v: number(v, 0)),
}
PROBES: Columns = {  # below it: what else became of knowledge
    "generality": ("general", percent),
    "kept": ("kept", percent),
    "keep": ("real", percent),
    "bleed": ("bleed", number),
    "specificity": ("spec.", percent),
    "forgetting": ("forg.", number),
    "bwt": ("BWT", number),
    "ppl_ratio": ("ppl x", ratio),
    "em_ratio": ("EM x", number),
}


DRIFT: Columns = {  # with eval --all: how fast tasks are learned, and what the network becomes
    "learn_auc": ("AUC", number),
    "steps_to_tau": ("tau", lambda v: number(v, 0)),
    "fwt": ("FWT", number),
    "intransigence": ("intr.", number),
    "min_acc": ("min", percent),
    "leakage": ("leak", number),
    "frac_lost": ("lost", percent),
    "kl_new": ("KL new", number),
    "jaccard": ("Jacc.", number),
    "recovered": ("rec.", percent),
    "remembers_mb": ("MB", lambda v: number(v, 1)),
}


def results(
    found: dict[str, dict[str, Any]],
    *,
    width: int,
    with_formulas: bool = False,
    more: bool = False,
) -> str:
    """The first screen: an arm a row, then bases, contrasts, and what one seed can say.

    `more` adds a table of learning and drift.
    """
    parts = []
    rows = {name: figures for name, figures in found.items() if figures["kind"] == "arm"}
    for name, figures in found.items():
        if figures["kind"] == "base":
            parts.append(base(name, figures))
        elif figures["kind"] == "probes":
            parts.append(probes(name, figures))
    if with_formulas:
        parts.append(formula_lines(dict.fromkeys(FORMULAS, ("", str))))
    elif rows:
        parts.append(formula_lines(COLUMNS | PROBES | (DRIFT if more else {})))
    parts.append(conclusions(rows))
    text = folded("\n\n".join(part for part in parts if part), width)
    if not rows:
        return text
    tables = [
        first_table(rows, width),
        arm_table(rows, PROBES, width),
        *([arm_table(rows, DRIFT, width)] if more else []),
    ]
    return "\n\n".join([*tables, text])


def labels(rows: dict[str, dict[str, Any]]) -> list[str]:
    """How the arms are called, no two alike."""
    seeds = [figures["seed"] for figures in rows.values()]
    return told_apart([label(figures) for figures in rows.values()], list(rows), seeds)


def first_table(rows: dict[str, dict[str, Any]], width: int) -> str:
    """An arm a row: what moved, forgetting, cost."""
    table = plain()
    table.add_column("arm", no_wrap=True)
    for header in ["moves", *(title for title, _ in COLUMNS.values()), "cap", "time"]:
        table.add_column(header, justify="right", no_wrap=True)
    for name, figures in zip(labels(rows), rows.values()):
        cells = [show(figures[key]) for key, (_, show) in COLUMNS.items()]
        moves, elapsed = f"{figures['trainable'] / 1e6:.2f}M", f"{figures['elapsed_s']:.0f}s"
        table.add_row(name, moves, *cells, str(figures["capped"]), elapsed)
    return rendered(table, width)


def arm_table(rows: dict[str, dict[str, Any]], columns: Columns, width: int) -> str:
    """An arm a row with these figures; none is ever cut."""
    table = plain()
    table.add_column("arm", no_wrap=True)
    for header, _ in columns.values():
        table.add_column(header, justify="right", no_wrap=True)
    for name, figures in zip(labels(rows), rows.values()):
        table.add_row(name, *(show(figures[key]) for key, (_, show) in columns.items()))
    return rendered(table, width)


def formula_lines(columns: Mapping[str, tuple[str, Any]]) -> str:
    """Each figure's formula on a line of its own, under the name its column has."""
    names = {key: title or FORMULAS[key].title for key, (title, _) in columns.items()}
    longest = max(len(name) for name in names.values())
    lines = [f"{name:<{longest}}  {FORMULAS[key].text}" for key, name in names.items()]
    return "\n".join([*lines, f"{'cap':<{longest}}  tasks that hit the cap of steps unlearned"])


def conclusions(rows: dict[str, dict[str, Any]]) -> str:
    """Contrasts with their matching, equality of the bases, and the verdict."""
    lines = []
    compared = comparable(rows)
    lines += compared.left_out
    nll = {figures["arch"]: figures["base_nll"] for figures in compared.arms.values()}
    if "dense" in nll and "dsa" in nll:
        gap = abs(nll["dense"] - nll["dsa"])
        word = "equal" if gap <= EQUAL_BASES else "NOT EQUAL"
        lines.append(
            f"bases: held-out NLL dense {nll['dense']:.4f}, dsa {nll['dsa']:.4f}: "
            f"{word} (|difference| {gap:.4f}, limit {EQUAL_BASES})"
        )
    for row in all_contrasts(rows):
        y, y2 = signed(row["Y"], 3), signed(row["Y2"], 2)
        lines.append(
            f"{row['claim']:<4}{row['contrast']}: Y {y}, Y2 {y2} nats  "
            f"{row['verdict']} ({row['why']})"
        )
        if row["equal_learning"]:
            lines.append("    at equal learning")
        else:
            lines.append(f"    NOT at equal learning: {'; '.join(row['differs'])}")
    if rows:
        lines += [""] if lines else []
        lines.append(
            "One seed decides nothing: differences above may be luck of one pre-training. "
            "Run more seeds (--seed 1, 2, ...)."
            if len({figures["seed"] for figures in rows.values()}) == 1
            else "Seeds are not put together here: each arm is of one pre-training and its luck."
        )
    return "\n".join(lines)


def probes(name: str, figures: dict[str, Any]) -> str:
    """A base on a stream it has not learned."""
    shares = ", ".join(f"{kind} {percent(share)}" for kind, share in figures["right"].items())
    return f"{name} on {figures['stream']}, before learning: right on {shares}"
