"""The figures of fine-tuning runs and the contrasts between them, from stored records; no torch."""

from collections import Counter
from typing import Any, NamedTuple

from dsa_sandbox.evaluation import metrics
from dsa_sandbox.store import Run

SEEDS_NEEDED = {"H2c": 6, "H2": 8, "H2a": 8, "H2b": 8}  # below, no exact test can reach p < 0.05


def figures_of(run: Run) -> dict[str, Any]:
    """Everything `eval` says of an arm."""
    lines = [row for row in run.rows("metrics.jsonl") if "row" in row]
    records = run.rows("records.jsonl")
    manifest = run.manifest
    timing = [row["elapsed_s"] for row in run.rows("timing.jsonl") if "row" in row]
    return {
        "kind": "arm",
        "arch": manifest["arch"],
        "strategy": manifest["strategy"],
        "optimizer": manifest["optimizer"],
        "overwriting": manifest["overwriting"],
        "seed": manifest["seed"],
        "stream": manifest["tasks"]["sha256"],
        "trainable": manifest["mask"]["trainable"],
        "mask": manifest["mask"]["sha256"],
        "tasks": len(lines) - 1,
        **metrics.summary(records, lines),
        "capped": sum(1 for line in lines if line["row"] and not line["learned"]),
        "worlds": metrics.world_probabilities(records),
        "base_nll": lines[0]["base_nll"],
        "moved": lines[-1].get("moved", {}),
        "elapsed_s": sum_of_sessions(timing),
    }


def sum_of_sessions(elapsed_s: list[float]) -> float:
    """Seconds over all sessions of a run: each begins again at zero."""
    following = [*elapsed_s[1:], 0.0]
    return sum(now for now, after in zip(elapsed_s, following) if after < now)


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """a - b in both outcomes, nats; below zero, a forgets less."""
    return {key: a[key] - b[key] for key in ("Y", "Y2")}


class Comparable(NamedTuple):
    """Arms that may be compared, by architecture and strategy, and why others may not."""

    arms: dict[tuple[str, str], dict[str, Any]]
    left_out: list[str]


def comparable(results: dict[str, dict[str, Any]]) -> Comparable:
    """Arms of one stream and seed, each the only one of its name."""
    found = [figures for figures in results.values() if figures["kind"] == "arm"]
    if len({(figures["stream"], figures["seed"]) for figures in found}) > 1:
        return Comparable({}, ["arms of several streams or seeds: none is compared to another"])
    times = Counter((figures["arch"], figures["strategy"]) for figures in found)
    left_out = [
        f"{count} arms are {' '.join(arm)}: no contrast uses them; name the runs to compare"
        for arm, count in times.items()
        if count > 1
    ]
    named = {(figures["arch"], figures["strategy"]): figures for figures in found}
    return Comparable({arm: named[arm] for arm in named if times[arm] == 1}, left_out)


def contrasts(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The pre-registered contrasts that the arms at hand allow, and whether learning is matched.

    One seed carries no test: every verdict is `undecided`.
    """
    arms = comparable(results).arms
    found = []

    def simple(name: str, a: tuple[str, str], b: tuple[str, str]) -> None:
        if a in arms and b in arms:
            match = metrics.equal_learning(arms[a], arms[b], (" ".join(a), " ".join(b)))
            title = f"{' '.join(a)} - {' '.join(b)}"
            found.append(entry(name, title, difference(arms[a], arms[b]), match))

    simple("H2", ("dsa", "acft"), ("dense", "ewc"))
    simple("H2", ("dsa", "acft"), ("dense", "sgd"))
    for strategy in dict.fromkeys(strategy for _, strategy in arms):
        simple("H2a", ("dsa", strategy), ("dense", strategy))
    for arch in dict.fromkeys(arch for arch, _ in arms):
        simple("H2b", (arch, "acft"), (arch, "sgd"))
    for control in ("dense", "dsa-full"):
        four = [("dsa", "acft"), ("dsa", "sgd"), (control, "acft"), (control, "sgd")]
        if all(arm in arms for arm in four):
            inner, outer = (difference(arms[four[i]], arms[four[i + 1]]) for i in (0, 2))
            value = {key: inner[key] - outer[key] for key in inner}
            first, reasons = " ".join(four[0]), []
            for arm in four[1:]:
                other = " ".join(arm)
                match = metrics.equal_learning(arms[four[0]], arms[arm], (first, other))
                reasons += [
                    reason if " learned " in reason else f"{reason} against {other}"
                    for reason in match.reasons
                ]
            match = metrics.Matching(not reasons, list(dict.fromkeys(reasons)))
            title = f"[dsa acft - dsa sgd] - [{control} acft - {control} sgd]"
            found.append(entry("H2c", title, value, match))
    return found


def entry(
    name: str, title: str, value: dict[str, float], match: metrics.Matching
) -> dict[str, Any]:
    """One contrast as plain values."""
    return {
        "claim": name,
        "contrast": title,
        **value,
        "equal_learning": match.equal,
        "differs": match.reasons,
        "verdict": "undecided",
        "why": f"one seed; {SEEDS_NEEDED[name]} are needed",
    }
