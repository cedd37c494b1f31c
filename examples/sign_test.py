"""A statistic in one file: the exact sign test of two arms over seeds.

`dsa-sandbox eval RUN RUN .. --include examples/sign_test.py --all`

Dixon & Mood 1946: of n seeds whose arms differ, the first arm forgets less in k; under the null
hypothesis k is binomial with probability 1/2.
"""

from math import comb
from typing import Any

from dsa_sandbox.registry import statistics
from dsa_sandbox.verdict.matching import Results

FIRST, SECOND = ("dsa", "acft"), ("dense", "ewc")


def two_sided_p(less: int, count: int) -> float:
    """Probability of a split of `count` seeds that is at least as uneven as `less`."""
    tail = sum(comb(count, k) for k in range(min(less, count - less) + 1))
    return min(1.0, 2 * tail / 2**count)


@statistics.register("sign-test")
def sign_test(arms: Results) -> list[dict[str, Any]]:
    """Drift of the two arms' streams, paired by seed and stream; no row without a pair.

    A statistic gets the figures of all arms by run name, and returns rows: `eval --all` prints
    them as a table, `--json` holds them under `statistics`.
    """
    values: dict[tuple[str, str], dict[tuple[int, str], float]] = {FIRST: {}, SECOND: {}}
    for figures in arms.values():
        arm = figures["arch"], figures["strategy"]
        if arm in values and figures["experiment"] == "stream" and not figures["placebo"]:
            values[arm][figures["seed"], figures["stream"]] = figures["drift"]
    both = values[FIRST].keys() & values[SECOND].keys()
    differences = [values[FIRST][pair] - values[SECOND][pair] for pair in both]
    differences = [difference for difference in differences if difference != 0]
    if not differences:
        return []
    less = sum(difference < 0 for difference in differences)
    title = f"{' '.join(FIRST)} - {' '.join(SECOND)}"
    p = two_sided_p(less, len(differences))
    return [{"contrast": title, "seeds": len(differences), "first_less": less, "p": p}]
