"""The cells that each claim is decided by: a study that does not run them cannot make the claim."""

from collections.abc import Sequence
from typing import NamedTuple

from dsa_sandbox.config.study_file import Arm, StudyFile, variant
from dsa_sandbox.errors import UserError


class Need(NamedTuple):
    """An arm, or with no strategy a base; `sets` as in a variant, a bare key for any value."""

    experiment: str
    arch: str
    strategy: str = ""
    sets: tuple[str, ...] = ()

    def fits(self, arm: Arm) -> bool:
        """Whether an arm is the one that is needed; masks may be drawn anew."""
        if (arm.arch, arm.strategy) != (self.arch, self.strategy):
            return False
        given = [text for text in variant(arm.sets) if not text.startswith("random-mask.draw=")]
        if len(given) != len(self.sets):
            return False
        return all(
            text in (want, f"{want}={text.partition('=')[2]}")
            for want, text in zip(sorted(self.sets), given)
        )

    @property
    def named(self) -> str:
        """The arm as a study file writes it, and where."""
        sets = [text if "=" in text else f"{text}=..." for text in self.sets]
        name = ", ".join([f"{self.arch} {self.strategy}".strip(), *sets])
        return f"`{name}` under {self.experiment or 'bases'}"


def singles(archs: Sequence[str], names: Sequence[str], *sets: str) -> tuple[Need, ...]:
    """Arms of single tasks: each strategy on each architecture."""
    return tuple(Need("single", arch, name, sets) for arch in archs for name in names)


MASK = singles(["dsa"], ["random-mask"])  # a random mask must not do the same
BOTH, ALL = ("dense", "dsa"), ("dense", "dsa", "dsa-full")
NEEDS: dict[str, tuple[Need, ...]] = {
    "H1": (Need("", "dense"), Need("", "dsa")),
    "H2": (
        *(Need("stream", *arm) for arm in (("dsa", "acft"), ("dense", "ewc"), ("dense", "sgd"))),
        *singles(["dsa"], ["acft"]),
        *MASK,
    ),
    "H2c": (*singles(ALL, ["sgd", "acft"]), *MASK),
    "H2a": singles(BOTH, ["sgd", "ewc", "acft"]),
    "H2b": singles(BOTH, ["sgd", "acft"]),
    "H2d": (
        *singles(["dsa"], ["sgd", "acft"]),
        *singles(["dsa"], ["sgd", "acft"], "train.selection=random"),
        *singles(["dsa"], ["sgd", "acft"], "train.selection=window"),
    ),
    "H2e": (
        *singles(["dsa"], ["acft"]),
        *singles(BOTH, ["lora", "l2sp", "wise", "replay"]),
        *singles(BOTH, ["sgd"], "finetune.learning_rate"),
        *singles(BOTH, ["sgd"], "finetune.loss=answer"),
    ),
}


def check_claims(study: StudyFile, source: str) -> None:
    """UserError, a line for each claim, where a study claims what its cells cannot decide."""
    arms = {"stream": study.stream_arms, "single": study.single_arms}
    arms[""] = [base for seed in study.seeds for base in study.bases_at(seed)]
    problems = []
    for claim in study.claims:
        needs = NEEDS.get(claim, ())
        missing = [need for need in needs if not any(map(need.fits, arms[need.experiment]))]
        if missing:
            listed = "; ".join(need.named for need in missing)
            problems.append(
                f"claims: {claim}: its contrast needs cells that the study does not run; add "
                f"{listed}, or leave the claim out  [from {source}]"
            )
    if problems:
        raise UserError(*problems)
