"""Results of `build`, `pretrain`, `make-tasks`, `finetune`, and of `eval` for bases, as text."""

from typing import Any

from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.metrics.single import not_reached
from dsa_sandbox.report.numbers import number, percent, signed
from dsa_sandbox.report.wrapping import plain, rendered

SIDES = ("near_in", "far_in", "out")


def parameters(figures: dict[str, Any]) -> str:
    """Parameters of both networks by group, the total last, and the difference of the totals."""
    table = plain()
    table.add_column("group")
    groups: dict[str, None] = {}  # in the order of their first use
    for arch, counts in figures["parameters"].items():
        table.add_column(arch, justify="right")
        groups |= dict.fromkeys(counts)
    groups.pop("total")
    for group in [*groups, "total"]:
        cells = []
        for counts in figures["parameters"].values():
            cells.append(f"{counts[group]:,}" if group in counts else "")
        table.add_row(group, *cells)
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
    """The world gate of a base: open or CLOSED, and its two probabilities."""
    if gate["right"] is None:
        return "worlds gate CLOSED: no rule of a practice world is one token here"
    state = "open" if gate["open"] else "CLOSED"
    return (
        f"worlds gate {state}: practice P(right) {gate['right']:.2f} (>= 0.80), "
        f"bleed {gate['bleed']:.2f} (<= 0.20)"
    )


def base(name: str, figures: dict[str, Any]) -> str:
    """Quality of a base: held-out text, known facts, minimal pairs, world gate, a story."""
    pairs = []
    for kind, share in figures["pairs"].items():
        pairs.append(f"{kind} {share:.2f} (bigram {figures['pairs_bigram'][kind]:.2f})")
    valid = figures["valid"]
    lines = [
        f"{name}: held-out NLL {number(valid['nll'], 4)} nats per token, "
        f"{number(valid['bits_per_byte'], 4)} bits per byte"
    ]
    if figures.get("fact_stories"):
        share = figures["fact_stories"] / figures["train_documents"]
        lines.append(f"fact stories in the training text: {share:.0%} of documents")
    known = f"known facts {figures['known_facts']} of {figures['asked_facts']}"
    lines.append(f"{known}; pairs: {', '.join(pairs)}")
    lines.append(gate_text(figures["gate"]))
    if figures.get("recall"):  # bases made with 0.2.0 have no recall figures
        lines += recall_lines(figures)
    if figures.get("far_worlds"):
        lines.append(far_worlds_text(figures["far_worlds"]))
    lines += [f"a story: {figures['story']}"]
    return "\n".join(lines)


def recall_lines(figures: dict[str, Any]) -> list[str]:
    """Recall of stated words by distance, and how often the farthest are among the selected keys.

    A line for each kind of what is stated; bases of the first releases have one kind, facts.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in figures["recall"]:
        kinds.setdefault(row.get("of", "facts"), []).append(row)
    lines = []
    for kind, rows in kinds.items():
        right = ", ".join(f"{number(row['right'], 2)} after {row['distance']}" for row in rows)
        by_guess = f"chance {number(figures['recall_chance'], 2)}"
        if "recall_bigram" in figures:
            by_guess += f", bigram {number(figures['recall_bigram'], 2)}"
        lines.append(f"recall of stated {kind}: {right} tokens ({by_guess})")
        if rows[-1].get("hit_by_layer"):
            what = f"stated {kind}, {rows[-1]['distance']} tokens back,"
            lines.append(hits_text(what, rows[-1]["hit_by_layer"], rows[-1]["hit_chance"]))
    return lines


def far_worlds_text(found: dict[str, Any]) -> str:
    """Hit rates of far world names among the selected keys, by layer, beside chance."""
    return hits_text(f"far world names ({found['num']} items)", found["by_layer"], found["chance"])


def hits_text(what: str, by_layer: list[float], chance: float) -> str:
    """Hit rates by layer, beside chance."""
    layers = ", ".join(number(rate, 2) for rate in by_layer)
    return f"{what} among the selected keys, by layer: {layers} (chance {number(chance, 2)})"


def stream(name: str, figures: dict[str, Any]) -> str:
    """The result of `make-tasks`: tasks, known facts, density, gates of the bases."""
    lines = [f"{name}: {figures['tasks']} tasks"]
    if "usable" in figures:
        lines.append(
            f"facts known by all bases: {figures['known_by_all']} of {figures['asked_facts']}; "
            f"{figures['usable']} may be tasks here, {figures['reused_facts']} used again"
        )
    by_distance = figures.get("density_by_distance", {})
    parts = "".join(f", {name} {value:.3f}" for name, value in sorted(by_distance.items()))
    lines.append(f"mean density K/t at answers: {figures['density']:.3f}{parts} (limit 0.25)")
    if absent := figures.get("absent"):
        left_out = [f"{name} ({count} tasks)" for name, count in absent.items()]
        lines.append(f"left out, so not measured: {', '.join(left_out)}")
    for base_name, row in figures.get("bases", {}).items():
        lines.append(f"{base_name}: knows {row['known_facts']}; {gate_text(row['gate'])}")
    return "\n".join(lines)


def arm(name: str, figures: dict[str, Any]) -> str:
    """The result of `finetune`, in two lines."""
    if figures["placebo"]:
        return f"{name}: placebo of {figures['tasks']} tasks; eval shows it beside its arm"
    if figures["experiment"] == "single":
        return single_tasks(name, figures)
    outcomes = [
        f"{FIGURES['drift'].name} {signed(figures['drift'], 3)} nats per token",
        f"{FIGURES['lost'].name} {signed(figures['lost'], 2)}",
        f"{FIGURES['heldout_dnll'].name} {signed(figures['heldout_dnll'], 3)} nats per token",
        f"{FIGURES['final_exact_match'].name} {percent(figures['final_exact_match'])}",
    ]
    return (
        f"{name}: learned {percent(figures['learned'])} of {figures['tasks']} tasks "
        f"({figures['capped']} capped), {number(figures['steps'], 0)} steps each\n"
        f"{', '.join(outcomes)}"
    )


def single_tasks(name: str, figures: dict[str, Any]) -> str:
    """The result of `finetune` on single tasks, in two lines."""
    median = "not reached by half of the tasks"
    if not not_reached(figures):
        damage, steps = signed(figures["damage"], 3), number(figures["level_steps"], 0)
        median = f"{damage} nats per token, after {steps} steps (medians)"
    return (
        f"{name}: {percent(figures['reached'])} of {figures['tasks']} tasks reach discrimination "
        f"{figures['level']:g}\n{FIGURES['damage'].name} there: {median}"
    )


def probes(name: str, figures: dict[str, Any]) -> str:
    """Shares right of a base on the items of a stream before learning."""
    shares = ", ".join(f"{kind} {percent(share)}" for kind, share in figures["right"].items())
    parts = figures["parts"]
    sides = ", ".join(f"{key.replace('_', '-')} {number(parts[key])}" for key in SIDES)
    return (
        f"{name} on {figures['stream']}, before learning: right on {shares}\n"
        f"discrimination {number(parts['discrimination'])}: mean p {sides}"
    )
