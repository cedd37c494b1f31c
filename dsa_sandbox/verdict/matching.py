"""Conditions for comparing arms: bases of equal quality, equal learning, one stream and seed."""

import math
from itertools import combinations
from typing import Any, NamedTuple

from dsa_sandbox.metrics import stream
from dsa_sandbox.metrics.arm import FIGURES
from dsa_sandbox.metrics.transfer import condition_differences, parts

EQUAL_BASES = 0.02  # nats per token of held-out NLL
LEAST_LEARNED = 0.9  # share of the tasks of a stream
LEAST_REACHED = 2 / 3  # share of single tasks that reach the level
LIMITS = {"own_discrimination": stream.UNEQUAL}  # of a stream's own rows
EXPERIMENTS = ("single", "stream")

Results = dict[str, dict[str, Any]]  # figures by run name
Strategies = tuple[str, frozenset[str]]  # architecture, and the strategies that an arm combines


class Reason(NamedTuple):
    """A condition of equal learning that two arms miss, and by how much where that is a number."""

    topic: str  # settings, learned, or the key of a figure
    text: str
    difference: float | None = None


class Matching(NamedTuple):
    """Whether two arms learned equally, and why not."""

    equal: bool
    reasons: list[Reason]

    @property
    def texts(self) -> list[str]:
        """The reasons as `--json` lists them, each once."""
        return list(dict.fromkeys(reason.text for reason in self.reasons))


class Pair(NamedTuple):
    """Two arms by run name, and whether they learned equally."""

    first: str
    second: str
    matching: Matching


class Bases(NamedTuple):
    """Held-out NLL of the bases by architecture, in nats per token, and their largest difference.

    `difference` compares bases of one stream and seed; None where there is only one architecture.
    """

    nll: dict[str, list[float]]
    difference: float | None

    @property
    def equal(self) -> bool | None:
        """Whether the largest difference is within EQUAL_BASES; None without a difference."""
        return None if self.difference is None else self.difference <= EQUAL_BASES


class Comparable(NamedTuple):
    """Arms that contrasts may use, by architecture and strategy, and why others are left out."""

    arms: dict[tuple[str, str], dict[str, Any]]
    left_out: list[str]


def arms_of(results: Results) -> Results:
    """The results of arms, without those of bases."""
    return {name: figures for name, figures in results.items() if figures["kind"] == "arm"}


def of_experiment(results: Results, experiment: str) -> Results:
    """The arms of an experiment."""
    arms = arms_of(results)
    return {name: arm for name, arm in arms.items() if arm["experiment"] == experiment}


def competes(figures: dict[str, Any]) -> bool:
    """Whether an arm is compared; bounds and placebos are references, not competitors."""
    return figures["protocol"] == "sequential" and not figures["placebo"]


def streams_and_seeds(arms: Results) -> set[tuple[str, int]]:
    """The streams and seeds of the arms; only arms of one stream and seed are compared."""
    return {(figures["stream"], figures["seed"]) for figures in arms.values()}


def bases_of(results: Results) -> Bases:
    """Held-out NLL of the bases of all arms, and the largest difference between architectures."""
    arms = arms_of(results)
    nll: dict[str, list[float]] = {}
    for figures in arms.values():
        values = nll.setdefault(figures["arch"], [])
        if figures["base_nll"] not in values:
            values.append(figures["base_nll"])
    gaps = []
    for first, second in combinations(arms.values(), 2):
        same = all(first[key] == second[key] for key in ("stream", "seed"))
        if same and first["arch"] != second["arch"]:
            gaps.append(abs(first["base_nll"] - second["base_nll"]))
    return Bases(nll, max(gaps, default=None))


def equal_learning(
    a: dict[str, Any], b: dict[str, Any], names: tuple[str, str] = ("first", "second")
) -> Matching:
    """Same settings, and enough tasks learned.

    Single tasks are compared at one level, which at least LEAST_REACHED of them have to reach. In a
    stream, at least LEAST_LEARNED of the tasks are learned, and differences stay within LIMITS; a
    difference of NaN counts as one beyond its limit.
    """
    reasons = [Reason("settings", text) for text in condition_differences(a, b)]
    if a["experiment"] == "single":
        for name, figures in zip(names, (a, b)):
            if not figures["reached"] >= LEAST_REACHED:
                text = f"{name} reaches the level in {figures['reached']:.0%} of its tasks"
                reasons.append(Reason("reached", text))
        return Matching(not reasons, reasons)
    for name, figures in zip(names, (a, b)):
        if not figures["learned"] >= LEAST_LEARNED:
            text = f"{name} learned {figures['learned']:.0%} of its tasks"
            reasons.append(Reason("learned", text))
    for key, limit in LIMITS.items():
        difference = abs(a[key] - b[key])
        title = FIGURES[key].name
        if not math.isfinite(difference):
            text = f"{title} is not a number of both (limit of the difference: {limit})"
            reasons.append(Reason(key, text))
        elif difference > limit:
            text = f"{title} differs by {difference:.2f} (limit {limit})"
            reasons.append(Reason(key, text, difference))
    return Matching(not reasons, reasons)


def all_pairs(results: Results) -> list[Pair]:
    """Every two competing arms of one experiment; none where it has several streams or seeds."""
    found = []
    for experiment in EXPERIMENTS:
        arms = of_experiment(results, experiment)
        if len(streams_and_seeds(arms)) > 1:
            continue
        names = [name for name, figures in arms.items() if competes(figures)]
        for first, second in combinations(names, 2):
            matching = equal_learning(arms[first], arms[second], (first, second))
            found.append(Pair(first, second, matching))
    return found


def comparable(results: Results, experiment: str) -> Comparable:
    """Competing arms of an experiment, of one stream and seed, each architecture and strategy once.

    Bounds and placebos are in no contrast; they are not named as left out.
    """
    arms = {name: arm for name, arm in of_experiment(results, experiment).items() if competes(arm)}
    if len(streams_and_seeds(arms)) > 1:
        return Comparable({}, ["arms of several streams or seeds: none is compared to another"])
    named: dict[Strategies, list[str]] = {}
    for name, figures in arms.items():
        named.setdefault((figures["arch"], parts(figures["strategy"])), []).append(name)
    alone = {}
    left_out = []
    for runs in named.values():
        figures = arms[runs[0]]
        arch, strategy = figures["arch"], figures["strategy"]
        if len(runs) == 1:
            alone[arch, strategy] = figures
        else:
            left_out.append(
                f"{len(runs)} arms are {arch} {strategy}: no contrast uses them; name the runs to "
                f"compare ({', '.join(runs)})"
            )
    return Comparable(alone, left_out)
