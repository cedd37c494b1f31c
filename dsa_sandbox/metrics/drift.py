"""Figures of how far the network has moved from the base: text, weights, selected keys, stories."""

from typing import Any

from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.metrics.forgetting import Record, mean, number

FIGURES = {
    "fraction_lost": Figure(
        "fraction lost",
        "share",
        "held-out dNLL / (NLL_unigram - NLL_base(0)): lost share of the gain of pre-training",
        "end",
    ),
    "new_task_kl": Figure(
        "new-task KL",
        "nats per token",
        "KL(base || now) on the training stories of task T, after T",
        "end",
    ),
    "jaccard": Figure(
        "Jaccard",
        "share",
        "mean over layers of |S and S0| / |S or S0|, keys selected now (after T) and by the base",
        "end",
    ),
    "hit_rate": Figure(
        "hit rate",
        "share",
        "far worlds' names among the selected keys, mean over layers and tasks, each after its own",
        "task",
    ),
    "bits_per_byte": Figure(
        "bits per byte", "bits per byte", "held-out NLL in bits per byte of text, after T", "end"
    ),
    "pairs_fall": Figure(
        "pairs fall",
        "share",
        "mean over kinds of minimal pairs of the share right, row 0 - after T",
        "end",
    ),
    "recall": Figure(
        "recall",
        "share",
        "stated facts recalled, mean over distances of the share right, after T",
        "end",
    ),
    "recall_fall": Figure(
        "recall fall", "share", "mean over distances of the share recalled, row 0 - after T", "end"
    ),
    "recovered": Figure(
        "recovered",
        "share",
        "validation items of early tasks exact after T and the most steps of relearning on a copy",
    ),
    "repetition": Figure(
        "repetition",
        "share",
        "4-grams of generated stories that repeat an earlier one, after T",
        "end",
    ),
    "distinct": Figure(
        "distinct",
        "ratio",
        "expectation-adjusted distinct words of generated stories, after T",
        "end",
    ),
    "protagonist": Figure(
        "protagonist",
        "share",
        "generated stories that name their first child again, after T",
        "end",
    ),
    "pronoun": Figure(
        "pronoun",
        "share",
        "pronouns of generated stories that agree with their protagonist, after T",
        "end",
    ),
    "judge_nll": Figure(
        "judge NLL",
        "nats per token",
        "NLL of generated stories under the judge network, after T",
        "end",
    ),
}
STORIES = ("repetition", "distinct", "protagonist", "pronoun", "judge_nll")


def fraction_lost(first: Record, last: Record) -> float:
    """Rise of held-out NLL over the gain of pre-training on a unigram model; NaN without a gain."""
    gain = number(first, "unigram_nll") - first["base_nll"]
    return (last["base_nll"] - first["base_nll"]) / gain if gain > 0 else NAN


def mean_of_pairs(shares: dict[str, float] | None) -> float:
    """Share of minimal pairs right, mean over their kinds."""
    return mean((shares or {}).values())


def recalled(line: Record) -> float:
    """Share of stated facts recalled, mean over distances."""
    return mean(row["right"] for row in line.get("recall") or [])


def recovery(line: Record) -> dict[int, float]:
    """Exact share of items by steps of relearning, mean over the relearned tasks."""
    shares: dict[int, list[float]] = {}
    for row in line.get("recovery") or []:
        shares.setdefault(row["steps"], []).append(row["right"])
    return {steps: mean(shares[steps]) for steps in sorted(shares)}


def mean_jaccard(line: Record) -> float:
    """Jaccard similarity of the selected keys with those of the base, mean over layers."""
    return mean(share for share in line.get("jaccard") or [] if share is not None)


def hits_by_layer(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Hit rates of far worlds' names by layer, before (the base) and after a task; and by chance.

    Means over the tasks that have them; empty where none has.
    """
    found = [line["far_worlds"] for line in lines if line.get("far_worlds")]
    if not found:
        return {}
    before = zip(*(one["base"] for one in found))
    after = zip(*(one["by_layer"] for one in found))
    return {
        "before": [mean(layer) for layer in before],
        "after": [mean(layer) for layer in after],
        "chance": mean(one["chance"] for one in found),
    }


def drift_figures(lines: list[dict[str, Any]], protocol: str = "sequential") -> dict[str, float]:
    """The figures of FIGURES, from the lines of metrics.jsonl that end a task, in their order."""
    first, last = lines[0], lines[-1]
    relearned = list(recovery(last).values())
    stories = last.get("stories") or {}
    values = {
        "fraction_lost": fraction_lost(first, last),
        "new_task_kl": number(last, "kl_new"),
        "jaccard": mean_jaccard(last),
        "hit_rate": mean(hits_by_layer(lines).get("after", [])),
        "bits_per_byte": number(last, "bits_per_byte"),
        "pairs_fall": mean_of_pairs(first.get("pairs")) - mean_of_pairs(last.get("pairs")),
        "recall": recalled(last),
        "recall_fall": recalled(first) - recalled(last),
        "recovered": relearned[-1] if relearned else NAN,
    }
    for key in STORIES:
        values[key] = number(stories, key)
    return defined(values, FIGURES, protocol)
