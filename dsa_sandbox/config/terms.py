"""The part of a study file that decides its verdict; fixed before its first result."""

from pydantic import Field, field_validator, model_validator

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.registry import Unknown, claims

SEEDS_NEEDED = 10  # with fewer, no p-value survives the correction for several claims
MOST_SEEDS = 20  # the exact test enumerates 2^n patterns of signs
FIRST_CONFIRMING = 100  # seeds below are for everyday use, development and pilots


class Smallest(Frozen):
    """Smallest effects that matter; a certain effect below one counts as none."""

    damage: float = Field(0.05, gt=0, description="Damage of single tasks, nats per token.")
    drift: float = Field(0.10, gt=0, description="Drift of a stream, nats per token.")
    lost: float = Field(0.10, gt=0, description="What a stream loses of discrimination.")
    equal_bases: float = Field(
        0.02, gt=0, description="Held-out NLL of two bases that count as equal, nats per token."
    )


class Terms(Frozen):
    """Claims, level, seeds, smallest effects and exclusions of a study."""

    claims: tuple[str, ...] = Field((), description="Claims that the study tests, e.g. H2, H2c.")
    level: float | None = Field(
        None, gt=0, lt=1, description="Discrimination at which arms are compared [by tuning]."
    )
    seeds: tuple[int, ...] = Field((), description="Seeds; each is a block of all architectures.")
    confirmatory: bool = Field(
        True,
        description=f"Whether verdicts are given: needs {SEEDS_NEEDED} seeds, none of them below "
        f"{FIRST_CONFIRMING}.",
    )
    smallest: Smallest = Smallest()
    exclusions: tuple[str, ...] = Field((), description="What is left out, a sentence each.")
    exclude_seeds: dict[str, str] = Field(
        {}, description="Seeds that are left out, and why each of them is."
    )

    @field_validator("claims")
    @classmethod
    def _claims_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                claims.check(name)
            except Unknown as error:
                raise ValueError(str(error)) from None
        if len(set(value)) < len(value):
            raise ValueError("a claim is listed twice")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(seed < 0 for seed in value):
            raise ValueError("a seed is negative")
        if len(value) > MOST_SEEDS:
            raise ValueError(f"{len(value)} seeds; the exact tests take at most {MOST_SEEDS}")
        if len(set(value)) < len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _can_confirm(self) -> "Terms":
        for name, why in self.exclude_seeds.items():
            if name not in {str(seed) for seed in self.seeds}:
                raise ValueError(f"exclude_seeds.{name}: not one of the seeds of the study")
            if not why.strip():
                raise ValueError(f"exclude_seeds.{name}: say why this seed is left out")
        if not self.confirmatory:
            return self
        hint = "set confirmatory = false for intervals without a verdict"
        if len(self.kept_seeds) < SEEDS_NEEDED:
            raise ValueError(
                f"seeds: {len(self.kept_seeds)} of {SEEDS_NEEDED} that a verdict needs; {hint}"
            )
        early = [seed for seed in self.kept_seeds if seed < FIRST_CONFIRMING]
        if early:
            raise ValueError(
                f"seeds: {early[0]} is for everyday use or development and cannot confirm; take "
                f"seeds from {FIRST_CONFIRMING} on, or {hint}"
            )
        return self

    @property
    def kept_seeds(self) -> tuple[int, ...]:
        """The seeds that are not excluded."""
        return tuple(seed for seed in self.seeds if str(seed) not in self.exclude_seeds)
