"""When a task counts as learned, so that training on it stops."""

from typing import NamedTuple

import numpy as np

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.scoring import score


class Check(NamedTuple):
    """Result of the stop rule."""

    share: float  # of the tasks that were checked, those learned
    figures: dict[str, float]


def is_learned(
    model: Transformer, probes: Probes, number: int, plan: Finetune
) -> tuple[bool, dict[str, float]]:
    """All clozes exact, mean margin (nats) large enough, all but one outside item still exact."""
    cloze = score(model, probes.of(number, "cloze"), probes.tokenizer)
    outside = score(model, probes.of(number, "outside"), probes.tokenizer)
    margin = float(np.mean([one.margin for one in cloze]))
    num_exact = sum(one.gen_em for one in cloze)
    num_outside = sum(one.gen_em for one in outside)
    outside_enough = plan.contrast == 0 or num_outside >= len(outside) - 1
    learned = num_exact == len(cloze) and margin >= plan.margin and outside_enough
    return learned, {"margin": margin, "exact": num_exact, "outside": num_outside}


def check(model: Transformer, probes: Probes, tasks: list[int], plan: Finetune) -> Check:
    """The stop rule for several tasks: the share that is learned, and means of the figures."""
    results = [is_learned(model, probes, number, plan) for number in tasks]
    share = mean([float(learned) for learned, _ in results])
    names = results[0][1]
    return Check(share, {name: mean([figures[name] for _, figures in results]) for name in names})


def mean(values: list[float]) -> float:
    """The mean; a single value stays as it is (an int in a record stays an int)."""
    return values[0] if len(values) == 1 else float(np.mean(values))
