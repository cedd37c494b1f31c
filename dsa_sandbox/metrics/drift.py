"""How far the network itself has moved from the base: words, weights, selection, stories."""

from typing import Any

from dsa_sandbox.metrics.forgetting import NAN, Formula, Record, mean, meant, number

FORMULAS = {
    "frac_lost": Formula(
        "frac lost",
        "Y / (NLL_unigram - NLL_base(0)): share of what pre-training had won",
        "lower",
        "end",
    ),
    "kl_new": Formula(
        "KL new",
        "KL(base || now) on the training stories of task T, nats per token, after T",
        "none",
        "end",
    ),
    "jaccard": Formula(
        "Jaccard",
        "mean over layers of |S and S0| / |S or S0|, keys selected now (after T) and by the base",
        "higher",
        "end",
    ),
    "bits_per_byte": Formula(
        "bits/byte", "held-out NLL in bits per byte of text, after T", "lower", "end"
    ),
    "pairs_fall": Formula(
        "pairs fall",
        "mean over kinds of minimal pairs of the share right, row 0 - after T",
        "lower",
        "end",
    ),
    "recall": Formula(
        "recall",
        "stated facts recalled, mean over distances of the share right, after T",
        "higher",
        "end",
    ),
    "recall_fall": Formula("recall fall", "the same, row 0 - after T", "lower", "end"),
    "recovered": Formula(
        "recovered",
        "exact share of clozes of early tasks after T and the most steps of relearning on a copy",
        "higher",
    ),
    "repetition": Formula(
        "repeats", "share of 4-grams of told stories that repeat one, after T", "lower", "end"
    ),
    "distinct": Formula(
        "distinct", "expectation-adjusted distinct words of told stories, after T", "higher", "end"
    ),
    "protagonist": Formula(
        "protagonist", "told stories that name their first child again, after T", "higher", "end"
    ),
    "pronoun": Formula(
        "pronoun", "pronouns of told stories that fit their protagonist, after T", "higher", "end"
    ),
    "judge_nll": Formula(
        "judge NLL", "nats per token of told stories under the judge, after T", "lower", "end"
    ),
}
STORIES = ("repetition", "distinct", "protagonist", "pronoun", "judge_nll")


def fraction_lost(first: Record, last: Record) -> float:
    """Y over what pre-training had won beside a unigram; NaN where it had won nothing."""
    won = number(first, "unigram_nll") - first["base_nll"]
    return (last["base_nll"] - first["base_nll"]) / won if won > 0 else NAN


def mean_of_shares(shares: dict[str, float] | None) -> float:
    """Mean over the kinds of minimal pairs."""
    return mean((shares or {}).values())


def recalled(line: Record) -> float:
    """Mean over distances of the share right."""
    return mean(row["right"] for row in line.get("recall") or [])


def recovery(line: Record) -> dict[int, float]:
    """Exact share of clozes by steps of relearning, mean over the tasks that were relearned."""
    rows = line.get("recovery") or []
    steps = sorted({row["steps"] for row in rows})
    return {k: mean(row["right"] for row in rows if row["steps"] == k) for k in steps}


def figures(lines: list[dict[str, Any]], course: str = "sequence") -> dict[str, float]:
    """The figures of FORMULAS, from the lines of metrics.jsonl that end a task, in their order."""
    first, last = lines[0], lines[-1]
    relearned = list(recovery(last).values())
    stories = last.get("stories") or {}
    values = {
        "frac_lost": fraction_lost(first, last),
        "kl_new": number(last, "kl_new"),
        "jaccard": mean(share for share in last.get("jaccard") or [] if share is not None),
        "bits_per_byte": number(last, "bits_per_byte"),
        "pairs_fall": mean_of_shares(first.get("pairs")) - mean_of_shares(last.get("pairs")),
        "recall": recalled(last),
        "recall_fall": recalled(first) - recalled(last),
        "recovered": relearned[-1] if relearned else NAN,
        **{key: number(stories, key) for key in STORIES},
    }
    return meant(values, FORMULAS, course)
