"""The verdict on a study: every claim, every falsifier, every arm; no torch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dsa_sandbox.config.terms import SEEDS_NEEDED, Terms
from dsa_sandbox.registry import claims, falsifiers
from dsa_sandbox.runs.files import without_nan
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.claim import Claim, Finding
from dsa_sandbox.verdict.comparison import Comparison, missing
from dsa_sandbox.verdict.evidence import Component, Estimate, Evidence, estimate
from dsa_sandbox.verdict.falsifier import Told
from dsa_sandbox.verdict.inference.holm import holm

SHOWN = {  # figures of an arm, by experiment
    "single": ("reached", "damage", "placebo_share", "level_steps", "time_s"),
    "stream": ("learned", "drift", "lost", "own_discrimination", "placebo_share", "time_s"),
}


class ArmMeans(NamedTuple):
    """An arm over seeds: the estimate of each figure, and the seeds that have none."""

    key: ArmKey
    seeds: int
    figures: dict[str, Estimate]
    unknown: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The arm as plain values."""
        figures = {
            key: {
                "n": one.n,
                "mean": one.mean,
                "sd": one.sd,
                "interval": [*one.interval],
                "t_interval": [*one.t_interval],
                "unknown": self.unknown[key],
            }
            for key, one in self.figures.items()
        }
        return {**self.key._asdict(), "name": self.key.named, "seeds": self.seeds, **figures}


class Judgement(NamedTuple):
    """Everything that a study shows, as far as its blocks go."""

    confirmatory: bool
    seeds: list[int]
    excluded: dict[str, str]
    exclusions: tuple[str, ...]
    findings: list[Finding]
    falsifiers: list[Told]
    arms: list[ArmMeans]

    def verdict(self, claim: str) -> str:
        """The word for a claim; KeyError where the study does not make it."""
        return {one.claim: one.verdict for one in self.findings}[claim]

    def as_json(self) -> dict[str, Any]:
        """The judgement as plain values; null in place of what is not finite."""
        found = []
        for one in self.findings:
            gates = [told.as_json() for told in one.gates]
            found.append({**vars(one), "gates": gates})
        value: dict[str, Any] = without_nan(
            {
                "confirmatory": self.confirmatory,
                "seeds": self.seeds,
                "excluded": self.excluded,
                "exclusions": list(self.exclusions),
                "claims": found,
                "falsifiers": [one.as_json() for one in self.falsifiers],
                "arms": [one.as_json() for one in self.arms],
            }
        )
        return value


class Opened(NamedTuple):
    """A claim with the blocks that have all of its cells, and its components there."""

    name: str
    claim: Claim
    evidence: Evidence
    lacking: list[str]
    components: list[Component]
    p: float


def judge(blocks: Sequence[Block], terms: Terms, *, resample: bool = True) -> Judgement:
    """The verdicts on the claims of the terms, from the blocks at hand.

    Blocks of other seeds than the terms', and of excluded ones, do not count. `resample` asks for
    the error of each refutation in 10,000 resampled studies.
    """
    kept = [block for block in blocks if block.seed in terms.kept_seeds]
    evidence = Evidence(kept, terms)
    opened = [open_claim(name, evidence) for name in terms.claims]
    secondary = [one for one in opened if one.claim.family == "secondary"]
    corrected = dict(
        zip((one.name for one in secondary), holm([one.p for one in secondary]).tolist())
    )
    return Judgement(
        confirmatory=terms.confirmatory,
        seeds=[block.seed for block in kept],
        excluded=dict(terms.exclude_seeds),
        exclusions=terms.exclusions,
        findings=[finding(one, corrected.get(one.name), resample) for one in opened],
        falsifiers=told_all(evidence, opened),
        arms=arm_means(kept),
    )


def open_claim(name: str, evidence: Evidence) -> Opened:
    """A claim on the blocks that have all of its cells."""
    claim: Claim = claims[name]()
    wanted = claim.comparisons(evidence.blocks)
    kept, lacking = [], []
    for block in evidence.blocks:
        gaps = [key.named for key in missing(block, wanted)]
        gaps += [f"base {base}" for base in claim.bases if base not in block.bases]
        if gaps:
            lacking.append(f"seed {block.seed}: {', '.join(gaps)}")
        else:
            kept.append(block)
    complete = evidence._replace(blocks=kept)
    components = claim.components(complete) if kept else []
    p = claim.p(components) if components else 1.0
    return Opened(name, claim, complete, lacking, components, p)


def finding(opened: Opened, corrected: float | None, resample: bool) -> Finding:
    """The verdict on one claim; exploratory, without one, where seeds are too few."""
    name, claim, evidence, lacking, components, p = opened
    gates = [
        falsifiers[gate]().tell(evidence, claim.comparisons(evidence.blocks))
        for gate in claim.gating
        if evidence.blocks
    ]
    about: dict[str, Any] = {
        "claim": name,
        "sentence": claim.sentence,
        "seeds": [block.seed for block in evidence.blocks],
        "components": claim.shown(evidence, components) if evidence.blocks else [],
        "p": p if components else None,
        "p_adjusted": corrected,
        "gates": gates,
        "missing": lacking,
    }
    few = why_exploratory(evidence, lacking)
    if few is not None:
        return Finding(verdict="exploratory", why=few, **about)
    used = p if corrected is None else corrected
    word, why = claim.decide(evidence, components, used, gates)
    error = claim.error(components) if resample and components else None
    return Finding(verdict=word, why=why, resampled_error=error, **about)


def why_exploratory(evidence: Evidence, lacking: Sequence[str]) -> str | None:
    """Why there is no verdict yet, or at all; None where the blocks suffice."""
    have = len(evidence.blocks)
    if not evidence.terms.confirmatory:
        return f"the study is exploratory: intervals of {have} seeds, no verdict"
    if have >= SEEDS_NEEDED:
        return None
    why = f"a verdict needs {SEEDS_NEEDED} seeds with all cells; {have} have them"
    return f"{why} ({'; '.join(lacking)})" if lacking else why


def told_all(evidence: Evidence, opened: Sequence[Opened]) -> list[Told]:
    """Every falsifier, for the comparisons of the study's primary claims, or else of all.

    Where there are none, for those of H2c and H2.
    """
    made = [one.claim for one in opened if one.claim.family == "primary"]
    made = made or [one.claim for one in opened if one.claim.outcomes]
    made = made or [claims[name]() for name in ("H2c", "H2")]
    found: list[Comparison] = [
        comparison for one in made for comparison in one.comparisons(evidence.blocks)
    ]
    return [falsifiers[name]().tell(evidence, found) for name in falsifiers]


def arm_means(blocks: Sequence[Block]) -> list[ArmMeans]:
    """Every arm over the seeds that have it, in the order of the first block that does."""
    keys = dict.fromkeys(key for block in blocks for key in block.arms if not key.placebo)
    found = []
    for key in keys:
        arms = [block.arms[key] for block in blocks if key in block.arms]
        figures, unknown = {}, {}
        for name in SHOWN[key.experiment]:
            values = [float(arm.get(name, math.nan)) for arm in arms]
            known = [value for value in values if math.isfinite(value)]
            if known or name not in ("placebo_share",):
                figures[name], unknown[name] = estimate(known), len(values) - len(known)
        found.append(ArmMeans(key, len(arms), figures, unknown))
    return found
