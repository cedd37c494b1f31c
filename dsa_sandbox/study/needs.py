"""The cells that each claim is decided by: a study that does not run them cannot make the claim."""

from typing import NamedTuple

from dsa_sandbox.config.study_file import Arm, StudyFile, variant
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import claims
from dsa_sandbox.verdict.comparison import pieces

OWN = ("random-mask.draw=", "replay.")  # settings with which an arm still is the one that is named


class Need(NamedTuple):
    """An arm, or with no strategy a base; `sets` as in a variant, a bare key for any value."""

    experiment: str
    arch: str
    strategy: str = ""
    sets: tuple[str, ...] = ()

    def fits(self, arm: Arm) -> bool:
        """Whether an arm is the one that is needed."""
        if (arm.arch, arm.strategy) != (self.arch, self.strategy):
            return False
        given = [text for text in variant(arm.sets) if not text.startswith(OWN)]
        wanted = sorted(text for text in self.sets if not text.startswith(OWN))
        return len(given) == len(wanted) and all(
            text == want or text.partition("=")[0] == want for want, text in zip(wanted, given)
        )

    @property
    def named(self) -> str:
        """The arm as a study file writes it, and where."""
        sets = [text if "=" in text else f"{text}=..." for text in self.sets]
        name = ", ".join([f"{self.arch} {self.strategy}".strip(), *sets])
        return f"`{name}` under {self.experiment or 'bases'}"


def needs_of(claim: str) -> list[Need]:
    """The arms of a claim's comparisons and of the falsifiers that forbid it, and its bases."""
    made = claims[claim]()
    needs = [
        Need(key.experiment, key.arch, key.strategy, tuple(pieces(key.variant)))
        for key in made.needs()
        if not key.placebo
    ]
    for name in made.bases:
        arch, *sets = name.split(", ")
        needs.append(Need("", arch, "", tuple(sets)))
    return needs


def check_claims(study: StudyFile, source: str) -> None:
    """UserError, a line for each claim, where a study claims what its cells cannot decide."""
    arms = {"stream": study.stream_arms, "single": study.single_arms}
    arms[""] = [base for seed in study.seeds for base in study.bases_at(seed)]
    problems = []
    for claim in study.claims:
        missing = [
            need for need in needs_of(claim) if not any(map(need.fits, arms[need.experiment]))
        ]
        if missing:
            listed = "; ".join(need.named for need in missing)
            problems.append(
                f"claims: {claim}: its contrast needs cells that the study does not run; add "
                f"{listed}, or leave the claim out  [from {source}]"
            )
    if problems:
        raise UserError(*problems)
